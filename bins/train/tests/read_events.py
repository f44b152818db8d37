"""What TensorBoard itself reads from a directory of event files, as JSON: read_events.py DIRECTORY."""

import json
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

accumulator = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0, "images": 0, "histograms": 0, "tensors": 0})
accumulator.Reload()
tags = accumulator.Tags()
print(
    json.dumps(
        {
            "scalars": {tag: [[e.step, e.value] for e in accumulator.Scalars(tag)] for tag in tags["scalars"]},
            "images": {
                tag: [[e.step, e.width, e.height, e.encoded_image_string[1:4].decode()] for e in accumulator.Images(tag)]
                for tag in tags["images"]
            },
            "histograms": {
                tag: [
                    [e.step, list(e.histogram_value.bucket_limit), list(e.histogram_value.bucket)]
                    for e in accumulator.Histograms(tag)
                ]
                for tag in tags["histograms"]
            },
        }
    )
)
