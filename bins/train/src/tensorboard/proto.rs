//! The part of TensorBoard's `event.proto` and `summary.proto` that is written here, field numbers as they are there.

/// `Event`.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Seconds since 1970.
    pub wall_time: f64,
    /// Steps made.
    pub step: u64,
    /// What happened.
    pub what: What,
}

/// The content of an event.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// The first event of a file: the version of the format.
    FileVersion(&'static str),
    /// Measurements.
    Summary(Vec<(String, Value)>),
    /// `SessionLog` with status START: what other files hold of this step and later ones is void.
    Start,
}

/// One measurement.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A number.
    Scalar(f64),
    /// A PNG file in colour.
    Image {
        /// In pixels.
        width: u32,
        /// In pixels.
        height: u32,
        /// The file.
        png: Vec<u8>,
    },
    /// Weights of adjacent intervals that start at 0 and end at `limits`.
    Histogram {
        /// Upper ends of the intervals, increasing.
        limits: Vec<f64>,
        /// A weight an interval.
        weights: Vec<f64>,
    },
}

impl Event {
    /// The message.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Message::default();
        out.double(1, self.wall_time);
        if self.step > 0 {
            out.integer(2, self.step);
        }
        match &self.what {
            What::FileVersion(version) => out.bytes(3, version.as_bytes()),
            What::Summary(values) => {
                let mut summary = Message::default();
                values.iter().for_each(|(tag, value)| summary.bytes(1, &value.encode(tag)));
                out.bytes(5, &summary.0);
            }
            What::Start => {
                let mut log = Message::default();
                log.integer(1, 1);
                out.bytes(7, &log.0);
            }
        }
        out.0
    }
}

impl Value {
    /// `Summary.Value`.
    fn encode(&self, tag: &str) -> Vec<u8> {
        let mut out = Message::default();
        out.bytes(1, tag.as_bytes());
        match self {
            Self::Scalar(value) => out.float(2, *value as f32),
            Self::Image { width, height, png } => {
                let mut image = Message::default();
                image.integer(1, u64::from(*height));
                image.integer(2, u64::from(*width));
                // RGB.
                image.integer(3, 3);
                image.bytes(4, png);
                out.bytes(4, &image.0);
            }
            Self::Histogram { limits, weights } => out.bytes(5, &histogram(limits, weights)),
        }
        out.0
    }
}

/// `HistogramProto`, whose moments are those of the middles of the intervals.
fn histogram(limits: &[f64], weights: &[f64]) -> Vec<u8> {
    let lower = std::iter::once(&0.0).chain(limits);
    let middles: Vec<f64> = lower.zip(limits).map(|(low, high)| 0.5 * (low + high)).collect();
    let moment = |power: i32| middles.iter().zip(weights).map(|(x, weight)| x.powi(power) * weight).sum::<f64>();
    let mut out = Message::default();
    // Field 1, the least value, is 0: left out.
    out.double(2, limits.last().copied().unwrap_or(0.0));
    out.double(3, moment(0));
    out.double(4, moment(1));
    out.double(5, moment(2));
    out.doubles(6, limits);
    out.doubles(7, weights);
    out.0
}

/// The step of an encoded event; `None` of what is none. A field left out is 0.
pub fn step(mut event: &[u8]) -> Option<u64> {
    let mut step = 0;
    while !event.is_empty() {
        let key = varint(&mut event)?;
        let length = match key & 7 {
            0 => {
                let value = varint(&mut event)?;
                step = if key >> 3 == 2 { value } else { step };
                0
            }
            1 => 8,
            2 => usize::try_from(varint(&mut event)?).ok()?,
            5 => 4,
            _ => return None,
        };
        event = event.get(length..)?;
    }
    Some(step)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// A message under way: key and value of one field after the other.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u64, wire: u64) {
        self.varint(field << 3 | wire);
    }

    fn integer(&mut self, field: u64, value: u64) {
        self.key(field, 0);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key(field, 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }

    /// Packed.
    fn doubles(&mut self, field: u64, values: &[f64]) {
        self.bytes(field, &values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(event: &Event) -> String {
        event.encode().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What Google's library makes of the same messages (tensorboard.compat.proto of TensorBoard 2.21).
    #[test]
    fn messages_are_byte_for_byte_those_of_the_reference() {
        let event = |step, what| Event { wall_time: 1.5, step, what };
        let version = event(300, What::FileVersion("brain.Event:2"));
        assert_eq!(hex(&version), "09000000000000f83f10ac021a0d627261696e2e4576656e743a32");
        let values = vec![
            ("a".to_owned(), Value::Scalar(0.25)),
            ("b".to_owned(), Value::Image { width: 3, height: 2, png: b"png".to_vec() }),
            ("c".to_owned(), Value::Histogram { limits: vec![0.5, 1.0], weights: vec![1.0, 2.0] }),
        ];
        let expected = [
            "09000000000000f83f10ac022a6b0a080a0161150000803e0a100a0162220b0802100318032203706e670a4d0a01632a48",
            "11000000000000f03f19000000000000084021000000000000fc3f29000000000000f33f",
            "3210000000000000e03f000000000000f03f3a10000000000000f03f0000000000000040",
        ];
        assert_eq!(hex(&event(300, What::Summary(values))), expected.concat());
        assert_eq!(hex(&event(301, What::Start)), "09000000000000f83f10ad023a020801");
    }

    #[test]
    fn the_step_is_read_back_and_nonsense_is_not() {
        for number in [0, 127, 128, 468_000, u64::MAX] {
            let event = Event { wall_time: 2.0, step: number, what: What::Start }.encode();
            assert_eq!(step(&event), Some(number));
            assert_eq!(step(&event[..event.len() - 1]), None);
        }
        assert_eq!((step(b""), step(&[0xff; 20]), step(&[0x0b])), (Some(0), None, None));
    }
}
