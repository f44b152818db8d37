// Stands in for the kernels where there was no compiler for them. lcf_native::has_kernels tells, so none is called.
#define ABSENT(NAME) \
  extern "C" int NAME() { return -1; }
ABSENT(lcf_product)
ABSENT(lcf_attention_takes)
ABSENT(lcf_attention_forward)
ABSENT(lcf_attention_partial)
ABSENT(lcf_attention_backward)
ABSENT(lcf_norm_forward)
ABSENT(lcf_norm_backward)
ABSENT(lcf_gelu_backward)
ABSENT(lcf_column_sums)
ABSENT(lcf_draw)
ABSENT(lcf_flow_loss)
ABSENT(lcf_update_parts)
ABSENT(lcf_update)
ABSENT(lcf_use_device)
