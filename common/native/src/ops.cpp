// The fused kernels as one differentiable operation, and its reference in plain ATen operations. CPU headers only: no
// symbol of libtorch_cuda is named, so the program that links this starts on any machine.
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <string>
#include <tuple>

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

#ifdef LCF_KERNELS
// kernels.cu
extern "C" int lcf_residual_norm_forward(const float*, const void*, const void*, const void*, const void*, long, float*,
                                         void*, float*, float*, int, long, int, float, void*);
extern "C" int lcf_residual_norm_backward(const float*, const void*, const float*, const float*, const float*,
                                          const void*, const void*, const void*, long, float*, void*, float*, int, int,
                                          int, int, void*);

#endif

namespace {

constexpr double EPS = 1e-6;

#ifdef LCF_KERNELS
void* stream_of(const Tensor& x) {
  const c10::impl::VirtualGuardImpl guard(x.device().type());
  return guard.getStream(x.device()).native_handle();
}

const void* data(const Tensor& x) { return x.defined() ? x.const_data_ptr() : nullptr; }

void check(int code) { TORCH_CHECK(code == 0, "residual_norm: ", code < 0 ? "unsupported width" : "CUDA error ", code); }

// Blocks a sample's tokens are shared among: enough blocks for a large card even when samples are few.
int chunks_for(int64_t tokens) { return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(tokens / 64, 16))); }

struct ResidualNorm : torch::autograd::Function<ResidualNorm> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const std::optional<Tensor>& branch_gate,
                               const std::optional<Tensor>& branch, const Tensor& shift, const Tensor& scale) {
    const c10::DeviceGuard device(x.device());
    const bool gated = branch_gate.has_value();
    const Tensor gate = branch_gate.value_or(Tensor()), h = branch.value_or(Tensor());
    const int64_t samples = x.size(0), tokens = x.size(1), width = x.size(2);
    const Tensor x_out = gated ? at::empty_like(x) : x;
    const Tensor y = at::empty(x.sizes(), x.options().dtype(at::kBFloat16));
    const Tensor mean = at::empty({samples * tokens}, x.options()), rstd = at::empty_like(mean);
    check(lcf_residual_norm_forward(x.const_data_ptr<float>(), data(gate), data(h), data(shift), data(scale),
                                    scale.stride(0), gated ? x_out.data_ptr<float>() : nullptr, y.data_ptr(),
                                    mean.data_ptr<float>(), rstd.data_ptr<float>(), static_cast<int>(tokens),
                                    samples * tokens, static_cast<int>(width), static_cast<float>(EPS), stream_of(x)));
    ctx->save_for_backward({x_out, mean, rstd, scale, gate, h});
    ctx->set_materialize_grads(false);
    return gated ? variable_list{y, x_out} : variable_list{y};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &mean = saved[1], &rstd = saved[2], &scale = saved[3], &gate = saved[4], &h = saved[5];
    const c10::DeviceGuard device(x.device());
    const bool gated = gate.defined();
    const int64_t samples = x.size(0), tokens = x.size(1), width = x.size(2);
    const int chunks = chunks_for(tokens);
    const Tensor dy = grads[0].defined() ? grads[0].contiguous() : at::zeros(x.sizes(), x.options().dtype(at::kBFloat16));
    const Tensor dx_out = gated && grads[1].defined() ? grads[1].contiguous() : Tensor();
    const Tensor dx = at::empty_like(x);
    const Tensor dh = gated ? at::empty_like(h) : Tensor();
    const Tensor sums = at::empty({gated ? 3 : 2, samples, chunks, width}, x.options());
    check(lcf_residual_norm_backward(static_cast<const float*>(data(dx_out)), data(dy), x.const_data_ptr<float>(),
                                     mean.const_data_ptr<float>(), rstd.const_data_ptr<float>(), data(scale),
                                     data(gate), data(h), scale.stride(0), dx.data_ptr<float>(),
                                     gated ? dh.data_ptr() : nullptr, sums.data_ptr<float>(), static_cast<int>(tokens),
                                     static_cast<int>(samples), chunks, static_cast<int>(width), stream_of(x)));
    const Tensor of_sample = sums.sum(2).to(at::kBFloat16);
    return {dx, gated ? of_sample.select(0, 2) : Tensor(), dh, of_sample.select(0, 0), of_sample.select(0, 1)};
  }
};

// Whether the kernels take it: on CUDA, fp32 stream, bf16 rest, contiguous, a width they were compiled for, and rows of
// shift, scale and gate that lie alike and allow 8-byte loads.
bool fits(const Tensor& x, const Tensor& gate, const Tensor& h, const Tensor& shift, const Tensor& scale) {
  const auto row = [&](const Tensor& t) {
    return t.scalar_type() == at::kBFloat16 && t.stride(1) == 1 && t.stride(0) == scale.stride(0) &&
           t.stride(0) % 4 == 0 && reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 8 == 0;
  };
  const int64_t width = x.size(2), v = width / 128;
  return x.is_cuda() && x.scalar_type() == at::kFloat && x.is_contiguous() && width % 128 == 0 &&
         (v <= 4 || v == 6 || v == 8) && row(shift) && row(scale) &&
         (!gate.defined() || (row(gate) && h.scalar_type() == at::kBFloat16 && h.is_contiguous()));
}
#endif

std::tuple<Tensor, Tensor> reference(const Tensor& x, const Tensor& gate, const Tensor& h, const Tensor& shift,
                                     const Tensor& scale) {
  const auto wide = [](const Tensor& t) { return t.to(at::kFloat).unsqueeze(1); };
  const Tensor x_out = gate.defined() ? x + wide(gate) * h.to(at::kFloat) : x;
  const Tensor normal = at::layer_norm(x_out, {x.size(2)}, {}, {}, EPS);
  return {x_out, (normal * (wide(scale) + 1.0) + wide(shift)).to(shift.scalar_type())};
}

std::tuple<Tensor, Tensor> residual_norm(const Tensor& x, const Tensor& gate, const Tensor& h, const Tensor& shift,
                                         const Tensor& scale) {
#ifdef LCF_KERNELS
  if (fits(x, gate, h, shift, scale)) {
    const auto optional = [](const Tensor& t) { return t.defined() ? std::optional<Tensor>(t) : std::nullopt; };
    const variable_list out = ResidualNorm::apply(x, optional(gate), optional(h), shift, scale);
    return {gate.defined() ? out[1] : x, out[0]};
  }
#endif
  return reference(x, gate, h, shift, scale);
}

thread_local std::string last_error;

}  // namespace

// What the last call that failed on this thread said.
extern "C" const char* lcf_last_error() { return last_error.c_str(); }

extern "C" int lcf_has_kernels() {
#ifdef LCF_KERNELS
  return 1;
#else
  return 0;
#endif
}

// gate and h may be null. Writes new tensors to x_out and y and returns 0, or returns 1 with lcf_last_error set.
extern "C" int lcf_residual_norm(const Tensor* x, const Tensor* gate, const Tensor* h, const Tensor* shift,
                                 const Tensor* scale, int use_kernels, Tensor** x_out, Tensor** y) {
  try {
    const Tensor none;
    const Tensor &g = gate ? *gate : none, &r = h ? *h : none;
    auto [a, b] = use_kernels ? residual_norm(*x, g, r, *shift, *scale) : reference(*x, g, r, *shift, *scale);
    *x_out = new Tensor(std::move(a));
    *y = new Tensor(std::move(b));
    return 0;
  } catch (const c10::Error& error) {
    last_error = error.what_without_backtrace();
  } catch (const std::exception& error) {
    last_error = error.what();
  } catch (...) {
    last_error = "unknown C++ exception";
  }
  return 1;
}
