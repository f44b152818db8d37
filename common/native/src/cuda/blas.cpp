// Matrix products through cublasLt, with the bias and GELU in the product's epilogue. cublasLt is part of what
// libtorch_cuda.so brings along and is found when that is open, so that nothing here needs it to start a program.
#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <tuple>

#include "device.h"

namespace {

struct Library {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtMatmulDescCreate) describe;
  decltype(&cublasLtMatmulDescSetAttribute) set;
  decltype(&cublasLtMatrixLayoutCreate) layout;
  decltype(&cublasLtMatrixLayoutSetAttribute) set_layout;
  decltype(&cublasLtMatmulPreferenceCreate) preference;
  decltype(&cublasLtMatmulPreferenceSetAttribute) prefer;
  decltype(&cublasLtMatmulAlgoConfigGetAttribute) config;
  cublasLtHandle_t handle = nullptr;
  bool good = true;

  template <class F>
  void find(F& f, const char* name) {
    f = reinterpret_cast<F>(dlsym(RTLD_DEFAULT, name));
    good = good && f;
  }

  Library() {
    find(create, "cublasLtCreate");
    find(matmul, "cublasLtMatmul");
    find(heuristic, "cublasLtMatmulAlgoGetHeuristic");
    find(describe, "cublasLtMatmulDescCreate");
    find(set, "cublasLtMatmulDescSetAttribute");
    find(layout, "cublasLtMatrixLayoutCreate");
    find(set_layout, "cublasLtMatrixLayoutSetAttribute");
    find(preference, "cublasLtMatmulPreferenceCreate");
    find(prefer, "cublasLtMatmulPreferenceSetAttribute");
    find(config, "cublasLtMatmulAlgoConfigGetAttribute");
    good = good && create(&handle) == CUBLAS_STATUS_SUCCESS;
  }
};

// A product prepared once for its sizes; only pointers change from call to call.
struct Plan {
  cublasLtMatmulDesc_t desc;
  cublasLtMatrixLayout_t a, b, d;
  cublasLtMatmulAlgo_t algo;
};

enum Epilogue { NONE, BIAS, GELU };

struct Product {
  int64_t m, n, k;
  int transpose_a, transpose_b, wide, epilogue;
  // How many products of these sizes; columns of a, b and d lie `lead` apart, their matrices and biases `step`.
  int count = 1;
  std::array<int64_t, 3> lead = {transpose_a ? k : m, transpose_b ? n : k, m};
  std::array<int64_t, 4> step = {};
  auto key() const {
    return std::tie(m, n, k, transpose_a, transpose_b, wide, epilogue, count, lead, step);
  }
  bool operator<(const Product& other) const { return key() < other.key(); }
};

// Which of cublasLt's proposals, best first by its own estimate, to take. A rule and not a measurement, so that all runs
// take the same. Where a matrix is narrow, moving numbers is much of the work, and on Hopper tiles of 128 x 128 leave room
// for two on a multiprocessor, one to multiply while the other writes. Products of a block of width 384, batch 256, less the
// two around GELU, in us: H200 856, first proposals 912, fastest 854; H100 950, 955 and 943. Of width 768 the first ones
// are as good.
int choose(const Library& lib, const Product& p, const cublasLtMatmulHeuristicResult_t* proposals, int found) {
  const int64_t width = std::min(p.m, p.k);
  const bool narrow = !p.wide && width >= 128 && width < 512;
  if (!narrow || !lcf::is_hopper(lcf::current_device())) return 0;
  for (int i = 0; i < found; i++) {
    cublasLtMatmulTile_t tile = CUBLASLT_MATMUL_TILE_UNDEFINED;
    lib.config(&proposals[i].algo, CUBLASLT_ALGO_CONFIG_TILE_ID, &tile, sizeof tile, nullptr);
    if (tile == CUBLASLT_MATMUL_TILE_128x128) return i;
  }
  return 0;
}

cublasStatus_t prepare(const Library& lib, const Product& p, size_t workspace, Plan& plan) {
  const cublasOperation_t ops[2] = {CUBLAS_OP_N, CUBLAS_OP_T};
  const cublasOperation_t ta = ops[p.transpose_a], tb = ops[p.transpose_b];
  const cublasLtEpilogue_t epilogues[3] = {CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_BIAS,
                                           CUBLASLT_EPILOGUE_GELU_AUX_BIAS};
  const cudaDataType out = p.wide ? CUDA_R_32F : CUDA_R_16BF;
  // The heuristic asks whether the pointers are set; the call sets the real ones.
  const void* some = nullptr;
  cublasStatus_t status = lib.describe(&plan.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  const auto set = [&](cublasLtMatmulDescAttributes_t what, const void* value, size_t bytes) {
    if (status == CUBLAS_STATUS_SUCCESS) status = lib.set(plan.desc, what, value, bytes);
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, &ta, sizeof ta);
  set(CUBLASLT_MATMUL_DESC_TRANSB, &tb, sizeof tb);
  set(CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogues[p.epilogue], sizeof(cublasLtEpilogue_t));
  some = &plan;
  if (p.epilogue != NONE) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, &some, sizeof some);
  if (p.epilogue == GELU) {
    some = reinterpret_cast<void*>(1 << 20);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &some, sizeof some);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &p.m, sizeof p.m);
  }
  if (p.count > 1 && p.epilogue == BIAS)
    set(CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, &p.step[3], sizeof p.step[3]);
  const auto layout = [&](cublasLtMatrixLayout_t& l, cudaDataType type, int64_t rows, int64_t columns, int which) {
    if (status == CUBLAS_STATUS_SUCCESS) status = lib.layout(&l, type, rows, columns, p.lead[which]);
    if (p.count == 1) return;
    if (status == CUBLAS_STATUS_SUCCESS)
      status = lib.set_layout(l, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &p.count, sizeof p.count);
    if (status == CUBLAS_STATUS_SUCCESS)
      status = lib.set_layout(l, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &p.step[which], sizeof p.step[which]);
  };
  layout(plan.a, CUDA_R_16BF, p.transpose_a ? p.k : p.m, p.transpose_a ? p.m : p.k, 0);
  layout(plan.b, CUDA_R_16BF, p.transpose_b ? p.n : p.k, p.transpose_b ? p.k : p.n, 1);
  layout(plan.d, out, p.m, p.n, 2);
  cublasLtMatmulPreference_t preference;
  if (status == CUBLAS_STATUS_SUCCESS) status = lib.preference(&preference);
  if (status == CUBLAS_STATUS_SUCCESS)
    status = lib.prefer(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  constexpr int MOST = 8;
  cublasLtMatmulHeuristicResult_t proposals[MOST];
  int found = 0;
  status = lib.heuristic(lib.handle, plan.desc, plan.a, plan.b, plan.d, plan.d, preference, MOST, proposals, &found);
  if (status == CUBLAS_STATUS_SUCCESS && found == 0) status = CUBLAS_STATUS_NOT_SUPPORTED;
  if (status == CUBLAS_STATUS_SUCCESS) plan.algo = proposals[choose(lib, p, proposals, found)].algo;
  return status;
}

// Returns 0, a cublas status, or -1 where there is no cublasLt.
int run(const Product& product, const void* a, const void* b, void* d, const void* bias, void* aux, void* workspace,
        int64_t workspace_bytes, void* stream) {
  static Library lib;
  static std::map<Product, Plan> plans;
  static std::mutex lock;
  if (!lib.good) return -1;
  const std::lock_guard<std::mutex> guard(lock);
  auto found = plans.find(product);
  if (found == plans.end()) {
    Plan plan;
    const cublasStatus_t status = prepare(lib, product, static_cast<size_t>(workspace_bytes), plan);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    found = plans.emplace(product, plan).first;
  }
  Plan& plan = found->second;
  if (product.epilogue != NONE) lib.set(plan.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias);
  if (product.epilogue == GELU) lib.set(plan.desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &aux, sizeof aux);
  const float one = 1, zero = 0;
  return lib.matmul(lib.handle, plan.desc, &one, a, plan.a, b, plan.b, &zero, d, plan.d, d, plan.d, &plan.algo, workspace,
                    static_cast<size_t>(workspace_bytes), static_cast<cudaStream_t>(stream));
}

}  // namespace

// d [m, n] = op(a) op(b) of column-major bf16 matrices without gaps, summed in fp32; d is fp32 where wide, else bf16.
// epilogue 1 adds bias (bf16 [m]) to every column; 2 does that, writes the sum to aux (bf16 [m, n]) and its GELU to d.
// Returns as `run`.
extern "C" int lcf_product(const void* a, const void* b, void* d, int64_t m, int64_t n, int64_t k, int transpose_a,
                           int transpose_b, int wide, int epilogue, const void* bias, void* aux, void* workspace,
                           int64_t workspace_bytes, void* stream) {
  return run({m, n, k, transpose_a, transpose_b, wide, epilogue}, a, b, d, bias, aux, workspace, workspace_bytes, stream);
}

// Many products of one size; see Product. bias may be null.
struct Products {
  const void *a, *b, *bias;
  void *d, *workspace;
  int64_t m, n, k, lead[3], step[4], workspace_bytes;
  int count, transpose_a, transpose_b, wide;
};

extern "C" int lcf_products(const Products* p, void* stream) {
  Product product = {p->m, p->n, p->k, p->transpose_a, p->transpose_b, p->wide, p->bias ? BIAS : NONE, p->count};
  for (int i = 0; i < 3; i++) product.lead[i] = p->lead[i];
  for (int i = 0; i < 4; i++) product.step[i] = p->step[i];
  const auto from = [&](const void* a, const void* b, void* d, const void* bias) {
    return run(product, a, b, d, bias, nullptr, p->workspace, p->workspace_bytes, stream);
  };
  const int status = from(p->a, p->b, p->d, p->bias);
  if (status != CUBLAS_STATUS_NOT_SUPPORTED || p->count == 1) return status;
  // cublasLt has no such batch: one by one.
  const auto at = [](const void* base, int64_t numbers, int bytes) {
    return base ? static_cast<const char*>(base) + numbers * bytes : nullptr;
  };
  product.count = 1;
  for (int i = 0; i < p->count; i++) {
    const int one = from(at(p->a, i * p->step[0], 2), at(p->b, i * p->step[1], 2),
                         const_cast<char*>(at(p->d, i * p->step[2], p->wide ? 4 : 2)), at(p->bias, i * p->step[3], 2));
    if (one) return one;
  }
  return 0;
}
