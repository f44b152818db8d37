// What a training step does around the network: its random draws, the flow-matching loss, the bookkeeping of what
// happened, and the update of the weights. Everything that changes from step to step lies on the device, so that one
// captured graph is every step.
#include <cuda_runtime.h>

#include "mma.cuh"

namespace {

using namespace lcf;

// ---- random numbers: lcf_model::rng, the same integers ----

constexpr uint64_t GAMMA = 0x9e3779b97f4a7c15ull;

__device__ inline uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

__device__ inline uint64_t stream_of(uint64_t base, uint64_t index) { return mix(base + index * GAMMA); }

__device__ inline float uniform(uint64_t base, uint64_t index) {
  return static_cast<float>(mix(stream_of(base, index)) >> 40) * 0x1p-24f;
}

// Numbers of the state, fp64: integers are exact there.
enum State {
  STEP,        // the step to be made, counted from 0
  UPDATES,     // updates made so far
  IN_A_ROW,    // steps left out since the last update
  LAST_BAD,    // the last step left out, counted from 1
  STEPS,       // the rest is summed since it was last read: steps
  SKIPPED,     // of them left out
  LOSS,        // of the others: what was minimised
  NORM,        // length of the gradient
  RATE,        // learning rate (the last one)
  CONTRAST,    // contrastive loss, pull and push distance
  CONTRASTED = CONTRAST + 3,  // steps with anchors
  ANCHORS,     // anchors
  OVERFLOW,    // low-noise samples beyond the anchor slots
  FLOW,        // mean square errors, by bin of t
  BINS = 10,
  SAMPLES = FLOW + BINS,  // regressed samples, by bin of t
  STATE = SAMPLES + BINS
};

// Of the B samples of a step, low-noise ones first, rank r of R has those at the places r, r + R, ...: b of them, of which
// the first K have an anchor slot.
struct Draw {
  uint64_t time, noise, flip;  // bases of the streams; flip 0 mirrors nothing
  const double* state;
  const uint8_t* images;   // [N, C, S, S]
  const int64_t* order;    // of the epoch
  int64_t* id;             // [b] number of the sample in the whole training
  int64_t* image;          // [b] which image
  float* t;                // [b + K]: times, then K times the threshold, that of the positives
  int* low;                // samples with t < threshold, of all ranks
  bf16* patches;           // [b + K, N, C p p]
  float* target;           // [b, N, p p C]
  bf16* frequencies;       // [b + K, 256]
  bool* ends;              // [K of this rank] whether the slot has an anchor
  float threshold;
  float logit_mean, logit_std;  // of a logit-normal t; 0: t is uniform
  int batch, samples, slots, rank, ranks;  // B, b, K, r, R
  int steps_per_epoch, channels, side, patch;
};

// Samples with t < threshold first, each part in its order; of them, those of this rank. One block.
__global__ void draw_order(Draw d) {
  __shared__ int counts[32], before_all[2];
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  const int64_t step = static_cast<int64_t>(d.state[STEP]), first = step * d.batch;
  const int64_t in_epoch = step % d.steps_per_epoch * d.batch;
  int low = 0;
  for (int i = threadIdx.x; i < d.batch; i += blockDim.x) low += uniform(d.time, first + i) < d.threshold;
  for (int offset = 16; offset > 0; offset /= 2) low += __shfl_xor_sync(ALL, low, offset);
  if (lane == 0) counts[warp] = low;
  __syncthreads();
  if (threadIdx.x == 0) {
    int sum = 0;
    for (int w = 0; w < warps; w++) sum += counts[w];
    *d.low = sum;
    before_all[0] = 0;
    before_all[1] = sum;
  }
  __syncthreads();
  for (int start = 0; start < d.batch; start += blockDim.x) {
    const int i = start + threadIdx.x;
    const bool there = i < d.batch;
    const float t = there ? uniform(d.time, first + i) : 0.0f;
    const bool is_low = there && t < d.threshold;
    const unsigned lows = __ballot_sync(ALL, is_low), highs = __ballot_sync(ALL, there && !is_low);
    __syncthreads();
    if (lane == 0) counts[warp] = __popc(lows);
    __syncthreads();
    int lows_before = 0, lows_here = 0;
    for (int w = 0; w < warps; w++) {
      lows_before += w < warp ? counts[w] : 0;
      lows_here += counts[w];
    }
    const unsigned below = (1u << lane) - 1;
    // All warps before this one are full.
    const int highs_before = warp * WARP - lows_before;
    const int place = is_low ? before_all[0] + lows_before + __popc(lows & below)
                             : before_all[1] + highs_before + __popc(highs & below);
    if (there && place % d.ranks == d.rank) {
      const int at = place / d.ranks;
      d.id[at] = first + i;
      d.image[at] = d.order[in_epoch + i];
      // The quantiles of 0 and 1 are infinite.
      const float z = d.logit_mean + d.logit_std * normcdfinvf(fminf(t + 0x1p-25f, 1.0f - 0x1p-24f));
      d.t[at] = d.logit_std > 0.0f ? 1.0f / (1.0f + expf(-z)) : t;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      before_all[0] += lows_here;
      before_all[1] += min(static_cast<int>(blockDim.x), d.batch - start) - lows_here;
    }
  }
  for (int i = threadIdx.x; i < d.slots; i += blockDim.x) {
    d.t[d.samples + i] = d.threshold;
    d.ends[i] = i * d.ranks + d.rank < *d.low;
  }
}

// Two normal numbers, elements e and e + half of the row, as Box and Muller make them from 64 bits.
__device__ inline float2 normal(uint64_t row, int e) {
  const uint64_t bits = mix(row + e * GAMMA);
  const float high = static_cast<float>(bits >> 32), low = static_cast<float>(bits & 0xffffffffu);
  const float radius = sqrtf(logf((high + 1.0f) * 0x1p-32f) * -2.0f);
  const float angle = low * static_cast<float>(0x1p-32 * 6.283185307179586);
  return make_float2(radius * cosf(angle), radius * sinf(angle));
}

// The sinusoidal embedding of 1000 t: 128 cosines, then 128 sines.
__device__ inline void frequencies(float t, bf16* out) {
  for (int k = threadIdx.x; k < 128; k += blockDim.x) {
    const float omega = expf(k * static_cast<float>(-9.210340371976184 / 128)), angle = t * 1000.0f * omega;
    out[k] = __float2bfloat16(cosf(angle));
    out[128 + k] = __float2bfloat16(sinf(angle));
  }
}

// One block a sample: embedding of its time, image, noise, x_t and the velocity, as patches. Slots have the first alone.
__global__ void draw_samples(Draw d) {
  frequencies(d.t[blockIdx.x], d.frequencies + blockIdx.x * 256);
  if (static_cast<int>(blockIdx.x) >= d.samples) return;
  const int row = blockIdx.x, p = d.patch, side = d.side, grid = side / p, len = d.channels * side * side;
  const int patch_len = d.channels * p * p, half = (len + 1) / 2;
  const int64_t id = d.id[row];
  const uint64_t noise = stream_of(d.noise, id);
  const bool mirrored = d.flip != 0 && uniform(d.flip, id) < 0.5f;
  const uint8_t* image = d.images + d.image[row] * len;
  const float t = d.t[row];
  const auto put = [&](int e, float eps) {
    const int c = e / (side * side), y = e / side % side, x = e % side;
    const float x0 = image[mirrored ? e - x + side - 1 - x : e] / 127.5f - 1.0f;
    const long token = y / p * grid + x / p;
    const int in_y = y % p, in_x = x % p, at = (c * p + in_y) * p + in_x;
    const long to = (static_cast<long>(row) * grid * grid + token) * patch_len;
    d.patches[to + at] = __float2bfloat16(x0 * (1.0f - t) + eps * t);
    d.target[to + (in_y * p + in_x) * d.channels + c] = eps - x0;
    if (row < d.slots) {
      const long positive = to + static_cast<long>(d.samples) * grid * grid * patch_len;
      d.patches[positive + at] = __float2bfloat16(x0 * (1.0f - d.threshold) + eps * d.threshold);
    }
  };
  for (int e = threadIdx.x; e < half; e += blockDim.x) {
    const float2 eps = normal(noise, e);
    put(e, eps.x);
    if (e + half < len) put(e + half, eps.y);
  }
}

// ---- loss ----

struct Loss {
  const bf16* out;       // [b, len]
  const float *target, *t;
  const int* low;        // of all ranks
  float* error;          // [b] mean square error per dimension; 0 where not regressed
  bf16* gradient;        // of the mean over the regressed samples of all ranks, [b, len]
  float threshold;       // samples below are not regressed
  bool mean;             // over dimensions, else their sum
  int batch, samples, len;  // B of all ranks, b of this one
};

__device__ inline float block_total(float value) {
  __shared__ float parts[32];
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(ALL, value, offset);
  if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = value;
  __syncthreads();
  float sum = 0;
  for (int w = 0; w < static_cast<int>(blockDim.x / WARP); w++) sum += parts[w];
  __syncthreads();
  return sum;
}

__global__ void flow_loss(Loss l) {
  const long first = static_cast<long>(blockIdx.x) * l.len;
  const bool regressed = l.t[blockIdx.x] >= l.threshold;
  const int count = l.threshold > 0 ? max(l.batch - *l.low, 1) : l.batch;
  const float by = 2.0f / count / (l.mean ? l.len : 1);
  float sum = 0;
  for (int i = threadIdx.x; i < l.len; i += blockDim.x) {
    const float difference = __bfloat162float(l.out[first + i]) - l.target[first + i];
    // A sample without a regression has no gradient, whatever the network made of it.
    l.gradient[first + i] = __float2bfloat16(regressed ? difference * by : 0.0f);
    sum += difference * difference;
  }
  sum = block_total(sum);
  if (threadIdx.x == 0) l.error[blockIdx.x] = regressed ? sum / l.len : 0.0f;
}

// ---- update ----

__global__ void squares(const float4* gradient, long quads, float* parts) {
  float sum = 0;
  for (long i = blockIdx.x * static_cast<long>(blockDim.x) + threadIdx.x; i < quads;
       i += static_cast<long>(gridDim.x) * blockDim.x) {
    const float4 g = gradient[i];
    sum += g.x * g.x + g.y * g.y + g.z * g.z + g.w * g.w;
  }
  sum = block_total(sum);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// The numbers are those of all ranks.
struct Finish {
  double* state;
  const float *error, *t, *contrast;  // contrast: loss, pull, push, or null
  const int* low;
  const float* squares;
  float* update;  // what adamw takes: scale of the gradient, rate, 1 / corrections, weight of the old average, whether
  int parts, batch, slots;
  float threshold, dimensions, lambda;
  double rate, warmup, beta1, beta2, decay, clip;
  bool ramp;
};

// One block: sums up the step and decides about the update.
__global__ void finish(Finish f) {
  double sum = 0;
  for (int i = threadIdx.x; i < f.parts; i += blockDim.x) sum += f.squares[i];
  __shared__ double sums[WARP];
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(ALL, sum, offset);
  if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = sum;
  __shared__ float flow[BINS], samples[BINS];
  for (int bin = threadIdx.x / WARP; bin < BINS; bin += blockDim.x / WARP) {
    float error = 0, count = 0;
    for (int i = threadIdx.x % WARP; i < f.batch; i += WARP) {
      const float t = f.t[i], e = f.error[i];
      if (t < f.threshold || bin != min(max(static_cast<int>(floorf(t * BINS)), 0), BINS - 1)) continue;
      error += e;
      count += 1;
    }
    for (int offset = 16; offset > 0; offset /= 2) {
      error += __shfl_xor_sync(ALL, error, offset);
      count += __shfl_xor_sync(ALL, count, offset);
    }
    if (threadIdx.x % WARP == 0) flow[bin] = error, samples[bin] = count;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  double square = 0, errors = 0, regressed = 0;
  for (int w = 0; w < static_cast<int>(blockDim.x / WARP); w++) square += sums[w];
  for (int bin = 0; bin < BINS; bin++) {
    errors += flow[bin];
    regressed += samples[bin];
  }
  double* s = f.state;
  const int low = *f.low, anchors = min(low, f.slots);
  const bool contrasted = f.contrast && anchors > 0;
  const double norm = sqrt(square);
  double loss = errors * f.dimensions / fmax(regressed, 1.0);
  if (contrasted) loss += static_cast<double>(f.lambda) * f.contrast[0];
  const double rate = f.rate * fmin((s[STEP] + 1) / fmax(f.warmup, 1.0), 1.0);
  s[STEP] += 1;
  s[STEPS] += 1;
  const bool good = isfinite(norm) && isfinite(loss);
  f.update[5] = good;
  if (!good) {
    s[SKIPPED] += 1;
    s[IN_A_ROW] += 1;
    s[LAST_BAD] = s[STEP];
    return;
  }
  s[IN_A_ROW] = 0;
  s[UPDATES] += 1;
  s[LOSS] += loss;
  s[NORM] += norm;
  s[RATE] = rate;
  if (contrasted) {
    for (int i = 0; i < 3; i++) s[CONTRAST + i] += f.contrast[i];
    s[CONTRASTED] += 1;
    s[ANCHORS] += anchors;
  }
  s[OVERFLOW] += f.contrast ? low - anchors : 0;
  for (int bin = 0; bin < BINS; bin++) {
    s[FLOW + bin] += flow[bin];
    s[SAMPLES + bin] += samples[bin];
  }
  const double k = s[UPDATES];
  f.update[0] = fmin(f.clip / (norm + 1e-6), 1.0);
  f.update[1] = rate;
  f.update[2] = 1.0 / (1.0 - pow(f.beta1, k));
  f.update[3] = 1.0 / sqrt(1.0 - pow(f.beta2, k));
  f.update[4] = f.ramp ? fmin(f.decay, (1.0 + k) / (10.0 + k)) : f.decay;
}

struct Update {
  const float* by;
  const float4* gradient;
  float4 *parameters, *first, *second, *average;
  bf16* compute;
  long quads;
  float beta1, beta2, eps, weight_decay;
};

// AdamW, the moving average and the copy that matrix products take, in one pass.
__global__ void adamw(Update u) {
  if (u.by[5] == 0) return;
  const float scale = u.by[0], rate = u.by[1], one = u.by[2], two = u.by[3], keep = u.by[4];
  const auto each = [&](float g, float& p, float& m, float& v, float& average) {
    g *= scale;
    p *= 1.0f - rate * u.weight_decay;
    m += (1.0f - u.beta1) * (g - m);
    v = u.beta2 * v + (1.0f - u.beta2) * g * g;
    p -= rate * one * (m / (sqrtf(v) * two + u.eps));
    average += (1.0f - keep) * (p - average);
  };
  for (long i = blockIdx.x * static_cast<long>(blockDim.x) + threadIdx.x; i < u.quads;
       i += static_cast<long>(gridDim.x) * blockDim.x) {
    float4 g = u.gradient[i], p = u.parameters[i], m = u.first[i], v = u.second[i], a = u.average[i];
    each(g.x, p.x, m.x, v.x, a.x);
    each(g.y, p.y, m.y, v.y, a.y);
    each(g.z, p.z, m.z, v.z, a.z);
    each(g.w, p.w, m.w, v.w, a.w);
    u.parameters[i] = p;
    u.first[i] = m;
    u.second[i] = v;
    u.average[i] = a;
    reinterpret_cast<uint2*>(u.compute)[i] = make_uint2(pack(p.x, p.y), pack(p.z, p.w));
  }
}

constexpr int UPDATE_BLOCKS = 132 * 8;

}  // namespace

// The kernels' copy of the CUDA runtime is not libtorch's, and has a current device of its own.
extern "C" int lcf_use_device(int device) { return cudaSetDevice(device); }

extern "C" int lcf_draw(const Draw* d, void* stream) {
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  draw_order<<<1, 256, 0, s>>>(*d);
  draw_samples<<<d->samples + d->slots, 256, 0, s>>>(*d);
  return cudaGetLastError();
}

extern "C" int lcf_flow_loss(const Loss* l, void* stream) {
  flow_loss<<<l->samples, 256, 0, static_cast<cudaStream_t>(stream)>>>(*l);
  return cudaGetLastError();
}

// parts holds lcf_update_parts() numbers.
extern "C" int lcf_update_parts() { return UPDATE_BLOCKS; }

extern "C" int lcf_update(const Finish* f, const Update* u, float* parts, void* stream) {
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  squares<<<UPDATE_BLOCKS, 256, 0, s>>>(u->gradient, u->quads, parts);
  finish<<<1, 256, 0, s>>>(*f);
  adamw<<<UPDATE_BLOCKS, 256, 0, s>>>(*u);
  return cudaGetLastError();
}
