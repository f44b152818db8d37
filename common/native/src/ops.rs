//! The layers of the DiT as fused operations on CUDA tensors, forward and backward. All matrices are bf16 and contiguous
//! unless said otherwise; each operation checks what it is given and panics when that does not fit.

use std::{
    cell::RefCell,
    collections::HashMap,
    ffi::{c_float, c_int, c_long, c_void},
    ptr::{null, null_mut},
};
use tch::{Device, Kind, Tensor};

/// Epsilon of the DiT's norms.
const EPS: f32 = 1e-6;
/// Width of an attention head.
pub const HEAD: i64 = 64;
/// Shares of the rows that [`gelu_backward`] sums apart, where it is up to us.
const GELU_PARTS: i64 = 1056;
/// What cublasLt may use to split sums.
pub(crate) const WORKSPACE: i64 = 32 << 20;

unsafe extern "C" {
    fn lcf_current_stream(device: c_int) -> *mut c_void;
    fn lcf_product(
        a: *const c_void,
        b: *const c_void,
        d: *mut c_void,
        m: i64,
        n: i64,
        k: i64,
        transpose_a: c_int,
        transpose_b: c_int,
        wide: c_int,
        epilogue: c_int,
        bias: *const c_void,
        aux: *mut c_void,
        workspace: *mut c_void,
        workspace_bytes: i64,
        stream: *mut c_void,
    ) -> c_int;
    fn lcf_attention_takes(device: c_int, tokens: c_int) -> c_int;
    fn lcf_attention_partial(tokens: c_int, heads: c_int, samples: c_int) -> c_long;
    fn lcf_attention_forward(
        qkv: *const c_void,
        out: *mut c_void,
        lse: *mut c_void,
        tokens: c_int,
        heads: c_int,
        samples: c_int,
        stream: *mut c_void,
    ) -> c_int;
    fn lcf_attention_backward(
        qkv: *const c_void,
        out: *const c_void,
        dout: *const c_void,
        lse: *const c_void,
        dqkv: *mut c_void,
        bias: *mut c_void,
        partial: *mut c_void,
        tokens: c_int,
        heads: c_int,
        samples: c_int,
        stream: *mut c_void,
    ) -> c_int;
    fn lcf_norm_forward(
        x: *const c_void,
        x_low: *const c_void,
        gate: *const c_void,
        h: *const c_void,
        shift: *const c_void,
        scale: *const c_void,
        stride: c_long,
        x_out: *mut c_void,
        x_out_low: *mut c_void,
        y: *mut c_void,
        stats: *mut c_void,
        tokens: c_int,
        rows: c_int,
        width: c_int,
        eps: c_float,
        stream: *mut c_void,
    ) -> c_int;
    fn lcf_norm_backward(
        dx_out: *const c_void,
        direct: *const c_void,
        dy: *const c_void,
        x: *const c_void,
        stats: *const c_void,
        scale: *const c_void,
        gate: *const c_void,
        h: *const c_void,
        stride: c_long,
        dx: *mut c_void,
        dh: *mut c_void,
        shift_sum: *mut c_void,
        scale_sum: *mut c_void,
        gate_sum: *mut c_void,
        dh_sum: *mut c_void,
        chunk_stride: c_long,
        row_stride: c_long,
        tokens: c_int,
        samples: c_int,
        chunks: c_int,
        width: c_int,
        stream: *mut c_void,
    ) -> c_int;
    fn lcf_gelu_backward(
        d: *mut c_void,
        pre: *const c_void,
        sums: *mut c_void,
        blocks: c_int,
        rows: c_long,
        columns: c_int,
        stream: *mut c_void,
    ) -> c_int;
    fn lcf_mlp_parts(k: c_int, columns: c_int) -> c_int;
    fn lcf_mlp_forward(
        y: *const c_void,
        weight: *const c_void,
        bias: *const c_void,
        z: *mut c_void,
        out: *mut c_void,
        rows: c_int,
        k: c_int,
        columns: c_int,
        stream: *mut c_void,
    ) -> c_int;
    fn lcf_mlp_backward(
        dh: *const c_void,
        weight: *const c_void,
        z: *const c_void,
        dz: *mut c_void,
        sums: *mut c_void,
        rows: c_int,
        k: c_int,
        columns: c_int,
        stream: *mut c_void,
    ) -> c_int;
    fn lcf_weight_gradients_workspace(list: *const Listed, count: c_int, tokens: c_int) -> c_long;
    fn lcf_weight_gradients(
        list: *const Listed,
        count: c_int,
        tokens: c_int,
        workspace: *mut c_void,
        stream: *mut c_void,
    ) -> c_int;
}

/// A [`WeightGradient`] as the kernels know it.
#[repr(C)]
struct Listed {
    dy: *const c_void,
    x: *const c_void,
    out: *mut c_void,
    n: c_int,
    k: c_int,
}

/// The stream that operations on the device of `tensor` go to.
pub(crate) fn stream(tensor: &Tensor) -> *mut c_void {
    match tensor.device() {
        // SAFETY: no pointers.
        Device::Cuda(index) => unsafe { lcf_current_stream(index as c_int) },
        other => panic!("a tensor on {other:?}, expected CUDA"),
    }
}

/// The data of a contiguous CUDA tensor of `kind` with at least `len` numbers.
pub(crate) fn data(tensor: &Tensor, kind: Kind, len: i64) -> *mut c_void {
    assert!(tensor.device().is_cuda(), "a tensor on {:?}, expected CUDA", tensor.device());
    assert_eq!(tensor.kind(), kind, "kind of a tensor");
    assert!(tensor.is_contiguous(), "a tensor of {:?} is not contiguous", tensor.size());
    assert!(tensor.numel() as i64 >= len, "a tensor of {:?}, expected {len} numbers", tensor.size());
    tensor.data_ptr()
}

pub(crate) fn bf16(tensor: &Tensor, len: i64) -> *mut c_void {
    data(tensor, Kind::BFloat16, len)
}

pub(crate) fn fp32(tensor: &Tensor, len: i64) -> *mut c_void {
    data(tensor, Kind::Float, len)
}

pub(crate) fn check(what: &str, code: c_int) {
    assert!(code == 0, "{what}: CUDA or cublasLt says {code}");
}

/// Scratch space of cublasLt, one for each stream: products on one stream follow each other.
pub(crate) fn workspace(device: Device, stream: *mut c_void) -> *mut c_void {
    thread_local! {
        static SPACES: RefCell<HashMap<usize, Tensor>> = RefCell::new(HashMap::new());
    }
    SPACES.with_borrow_mut(|spaces| {
        spaces.entry(stream as usize).or_insert_with(|| Tensor::empty([WORKSPACE], (Kind::Uint8, device))).data_ptr()
    })
}

enum Epilogue<'a> {
    None,
    Bias(&'a Tensor),
    Gelu(&'a Tensor, &'a Tensor),
}

/// Column-major product; see `lcf_product`.
fn product(a: &Tensor, b: &Tensor, d: &Tensor, [m, n, k]: [i64; 3], transpose: [bool; 2], epilogue: &Epilogue) {
    let wide = d.kind() == Kind::Float;
    let stream = stream(d);
    let (code, bias, aux) = match epilogue {
        Epilogue::None => (0, null(), null_mut()),
        Epilogue::Bias(bias) => (1, bf16(bias, m).cast_const(), null_mut()),
        Epilogue::Gelu(bias, aux) => (2, bf16(bias, m).cast_const(), bf16(aux, m * n)),
    };
    // SAFETY: all matrices are contiguous with the numbers their sizes ask for.
    let status = unsafe {
        lcf_product(
            bf16(a, m * k),
            bf16(b, k * n),
            data(d, if wide { Kind::Float } else { Kind::BFloat16 }, m * n),
            m,
            n,
            k,
            c_int::from(transpose[0]),
            c_int::from(transpose[1]),
            c_int::from(wide),
            code,
            bias,
            aux,
            workspace(d.device(), stream),
            WORKSPACE,
            stream,
        )
    };
    check("matrix product", status);
}

/// Rows and columns of `[.., columns]` taken as a matrix.
pub(crate) fn matrix(x: &Tensor) -> (i64, i64) {
    let columns = *x.size().last().expect("at least one dimension");
    (x.numel() as i64 / columns.max(1), columns)
}

/// Like `x`, with another last dimension.
fn with_columns(x: &Tensor, columns: i64, kind: Kind) -> Tensor {
    let mut size = x.size();
    *size.last_mut().expect("at least one dimension") = columns;
    Tensor::empty(size.as_slice(), (kind, x.device()))
}

/// x W^T + b: x `[.., K]`, weight `[N, K]`, bias `[N]` to `[.., N]`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Tensor {
    let ((rows, k), (n, _)) = (matrix(x), matrix(weight));
    let out = with_columns(x, n, Kind::BFloat16);
    product(weight, x, &out, [n, rows, k], [true, false], &Epilogue::Bias(bias));
    out
}

/// (z, GELU(z)) of z = x W^T + b, GELU by tanh: of the fp32 sum, not of the z that is rounded. Weight and bias may be read
/// while the kernel that was launched last is running: that one may not write them.
pub fn linear_gelu(x: &Tensor, weight: &Tensor, bias: &Tensor) -> (Tensor, Tensor) {
    let ((rows, k), (n, _)) = (matrix(x), matrix(weight));
    let (z, out) = (with_columns(x, n, Kind::BFloat16), with_columns(x, n, Kind::BFloat16));
    if mlp_parts(k, n) == 0 {
        product(weight, x, &out, [n, rows, k], [true, false], &Epilogue::Gelu(bias, &z));
        return (z, out);
    }
    // SAFETY: sizes are checked.
    let code = unsafe {
        lcf_mlp_forward(
            bf16(x, rows * k),
            bf16(weight, n * k),
            bf16(bias, n),
            bf16(&z, rows * n),
            bf16(&out, rows * n),
            rows as c_int,
            k as c_int,
            n as c_int,
            stream(x),
        )
    };
    check("linear layer with GELU", code);
    (z, out)
}

/// Rows of sums that this device's own kernel for the MLP makes, 0 where it has none for these sizes.
fn mlp_parts(k: i64, columns: i64) -> i64 {
    // SAFETY: no pointers.
    i64::from(unsafe { lcf_mlp_parts(k as c_int, columns as c_int) })
}

/// Gradient of the input of a linear layer: dy W, dy `[.., N]` and weight `[N, K]` to `[.., K]`.
pub fn input_gradient(dy: &Tensor, weight: &Tensor) -> Tensor {
    let ((rows, n), (_, k)) = (matrix(dy), matrix(weight));
    let out = with_columns(dy, k, Kind::BFloat16);
    product(weight, dy, &out, [k, rows, n], [false, false], &Epilogue::None);
    out
}

/// Gradient of the weight of a linear layer, dy^T x, into `out`, fp32 `[N, K]`: dy `[.., N]`, x `[.., K]`.
pub fn weight_gradient(dy: &Tensor, x: &Tensor, out: &Tensor) {
    let ((rows, n), (_, k)) = (matrix(dy), matrix(x));
    assert_eq!(out.kind(), Kind::Float, "kind of a weight gradient");
    product(x, dy, out, [k, n, rows], [false, true], &Epilogue::None);
}

/// What [`weight_gradient`] takes.
#[derive(Debug)]
pub struct WeightGradient {
    /// `[.., N]`.
    pub dy: Tensor,
    /// `[.., K]`.
    pub x: Tensor,
    /// fp32 `[N, K]`.
    pub out: Tensor,
}

/// Most weight gradients that one kernel makes.
const MOST_WEIGHTS: usize = 48;

/// [`weight_gradient`] of each, all over as many rows: on Hopper at once, where that takes the sizes.
pub fn weight_gradients(all: &[WeightGradient]) {
    for some in all.chunks(MOST_WEIGHTS) {
        let (list, rows) = listed(some);
        let bytes = weight_workspace(&list, rows);
        if bytes == 0 {
            some.iter().for_each(|g| weight_gradient(&g.dy, &g.x, &g.out));
            continue;
        }
        let space = Tensor::empty([bytes], (Kind::Uint8, some[0].out.device()));
        let (count, rows) = (list.len() as c_int, rows as c_int);
        // SAFETY: sizes are checked; the workspace is as long as was asked for.
        let code = unsafe { lcf_weight_gradients(list.as_ptr(), count, rows, space.data_ptr(), stream(&space)) };
        check("weight gradients", code);
    }
}

/// What the kernel is told of them, and how many rows there are.
fn listed(all: &[WeightGradient]) -> (Vec<Listed>, i64) {
    let rows = all.first().map_or(0, |first| matrix(&first.dy).0);
    let aligned = |data: *mut c_void| {
        assert!((data as usize).is_multiple_of(16), "a matrix that is not aligned");
        data
    };
    let list = |g: &WeightGradient| {
        let ((of_dy, n), (of_x, k)) = (matrix(&g.dy), matrix(&g.x));
        assert_eq!((of_dy, of_x), (rows, rows), "rows of a weight gradient");
        assert_eq!(matrix(&g.out), (n, k), "rows and columns of a weight gradient");
        let (dy, x) = (aligned(bf16(&g.dy, rows * n)), aligned(bf16(&g.x, rows * k)));
        Listed { dy, x, out: aligned(fp32(&g.out, n * k)), n: n as c_int, k: k as c_int }
    };
    (all.iter().map(list).collect(), rows)
}

/// Bytes that the kernel for all of them needs beside, 0 where this device has none for these sizes.
fn weight_workspace(list: &[Listed], rows: i64) -> i64 {
    // SAFETY: the list is as long as it says; its pointers are not followed.
    unsafe { lcf_weight_gradients_workspace(list.as_ptr(), list.len() as c_int, rows as c_int) }
}

/// Whether the attention takes so many tokens on a CUDA device: at most 256, but any number on Hopper.
pub fn attention_takes(tokens: i64, device: Device) -> bool {
    let (Device::Cuda(index), Ok(tokens @ 1..)) = (device, c_int::try_from(tokens)) else { return false };
    // SAFETY: no pointers.
    crate::has_kernels() && unsafe { lcf_attention_takes(index as c_int, tokens) == 1 }
}

/// Attention of every head: qkv `[B, N, 3, H, 64]` to out `[B, N, H 64]` and, to go back, the logarithms (base 2) of the
/// softmax's denominators, fp32 `[B, H, N]`.
pub fn attention(qkv: &Tensor, heads: i64) -> (Tensor, Tensor) {
    let (b, n, _) = qkv.size3().expect("qkv is [B, N, 3 H 64]");
    assert!(attention_takes(n, qkv.device()), "{n} tokens");
    let out = with_columns(qkv, heads * HEAD, Kind::BFloat16);
    let lse = Tensor::empty([b, heads, n], (Kind::Float, qkv.device()));
    let len = b * n * heads * HEAD;
    // SAFETY: sizes are checked.
    let code = unsafe {
        lcf_attention_forward(
            bf16(qkv, 3 * len),
            bf16(&out, len),
            fp32(&lse, b * heads * n),
            n as c_int,
            heads as c_int,
            b as c_int,
            stream(qkv),
        )
    };
    check("attention", code);
    (out, lse)
}

/// Gradient of [`attention`], `[B, N, 3 H 64]`, of the first B samples of what it took and gave; `sums`, fp32
/// `[B, 3 H 64]`, gets its sums over tokens.
pub fn attention_backward(
    qkv: &Tensor,
    out: &Tensor,
    lse: &Tensor,
    dout: &Tensor,
    heads: i64,
    sums: &Tensor,
) -> Tensor {
    let (b, n, width) = dout.size3().expect("dout is [B, N, H 64]");
    assert!(attention_takes(n, dout.device()) && width == heads * HEAD, "{n} tokens of {width}");
    let dqkv = with_columns(dout, 3 * width, Kind::BFloat16);
    let len = b * n * width;
    // SAFETY: no pointers.
    let partial = unsafe { lcf_attention_partial(n as c_int, heads as c_int, b as c_int) };
    let partial = Tensor::empty([partial], (Kind::Float, dout.device()));
    // SAFETY: sizes are checked.
    let code = unsafe {
        lcf_attention_backward(
            bf16(qkv, 3 * len),
            bf16(out, len),
            bf16(dout, len),
            fp32(lse, b * heads * n),
            bf16(&dqkv, 3 * len),
            fp32(sums, 3 * b * width),
            partial.data_ptr(),
            n as c_int,
            heads as c_int,
            b as c_int,
            stream(dout),
        )
    };
    check("attention backward", code);
    dqkv
}

/// Shift, scale and perhaps gate of one norm: `[B, D]` each, rows of one tensor, a common stride apart.
#[derive(Debug)]
pub struct Modulation<'a> {
    /// Added.
    pub shift: &'a Tensor,
    /// One more than this multiplies.
    pub scale: &'a Tensor,
    /// Gate, and the branch `[B, N, D]` whose product is added to the stream before.
    pub branch: Option<(&'a Tensor, &'a Tensor)>,
}

impl Modulation<'_> {
    /// Pointers to shift, scale, gate and branch, and the stride of rows.
    fn parts(&self, b: i64, n: i64, d: i64) -> ([*const c_void; 4], c_long) {
        let stride = self.scale.stride()[0];
        let row = |t: &Tensor| {
            assert_eq!((t.kind(), t.stride()), (Kind::BFloat16, vec![stride, 1]), "rows of a modulation");
            assert!(t.device().is_cuda() && t.size()[0] >= b && t.size()[1] == d, "a modulation of {:?}", t.size());
            assert!(stride % 8 == 0 && (t.data_ptr() as usize).is_multiple_of(16), "rows that are not aligned");
            t.data_ptr().cast_const()
        };
        let (gate, h) = self.branch.map_or((null(), null()), |(gate, h)| (row(gate), bf16(h, b * n * d).cast_const()));
        ([row(self.shift), row(self.scale), gate, h], stride)
    }
}

/// A residual stream, `[B, N, D]`.
#[derive(Debug)]
pub struct Stream {
    /// Rounded to bf16.
    pub high: Tensor,
    /// What that lacks, in 1/256 of its last place, int8; nothing where there is none. With it an update rounds to 16
    /// significant bits.
    pub low: Option<Tensor>,
}

/// What [`norm`] gives.
#[derive(Debug)]
pub struct Normed {
    /// The stream after the update.
    pub x: Stream,
    /// norm(x) (1 + scale) + shift, `[B, N, D]`.
    pub y: Tensor,
    /// To go back, with `x.high`: mean and 1 / standard deviation, fp32 `[B, N, 2]`.
    pub stats: Tensor,
}

/// x' = x + gate branch, which has a `low`, and its modulated norm; without a branch x' is x.
pub fn norm(x: &Stream, by: &Modulation) -> Normed {
    let (b, n, d) = x.high.size3().expect("a stream is [B, N, D]");
    let ([shift, scale, gate, h], stride) = by.parts(b, n, d);
    let int8 = (Kind::Int8, x.high.device());
    let out = Stream {
        high: if by.branch.is_some() { x.high.empty_like() } else { x.high.shallow_clone() },
        low: match by.branch {
            Some(_) => Some(Tensor::empty([b, n, d], int8)),
            None => x.low.as_ref().map(Tensor::shallow_clone),
        },
    };
    let y = x.high.empty_like();
    let stats = Tensor::empty([b, n, 2], (Kind::Float, y.device()));
    // SAFETY: sizes are checked; the new tensors have the sizes of x.
    let code = unsafe {
        lcf_norm_forward(
            bf16(&x.high, b * n * d),
            x.low.as_ref().map_or(null_mut(), |t| data(t, Kind::Int8, b * n * d)),
            gate,
            h,
            shift,
            scale,
            stride,
            out.high.data_ptr(),
            out.low.as_ref().map_or(null_mut(), Tensor::data_ptr),
            y.data_ptr(),
            stats.data_ptr(),
            n as c_int,
            (b * n) as c_int,
            d as c_int,
            EPS,
            stream(&y),
        )
    };
    check("norm", code);
    Normed { x: out, y, stats }
}

/// Gradients that arrive at a [`norm`].
#[derive(Debug)]
pub struct Arriving<'a> {
    /// Of x', `[B, N, D]`, from the next norm.
    pub dx: Option<&'a Tensor>,
    /// Of x' from elsewhere, fp32 `[B, D]`, for all tokens alike.
    pub direct: Option<&'a Tensor>,
    /// Of y, `[B, N, D]`.
    pub dy: &'a Tensor,
}

/// Where the sums over tokens go that a [`norm`]'s modulation and branch have as gradients, a chunk of tokens each.
#[derive(Debug)]
pub struct Sums<'a> {
    /// fp32 views `[chunks, B, D]` of one tensor, with common strides.
    pub shift: &'a Tensor,
    /// Likewise.
    pub scale: &'a Tensor,
    /// Likewise, where there is a branch.
    pub gate: Option<&'a Tensor>,
    /// Of the gradient of the branch: fp32 `[B, chunks, D]`.
    pub branch: Option<&'a Tensor>,
}

/// Gradients of x and of the branch, `[B, N, D]`, of a [`norm`] that gave `x.high` and `stats`.
pub fn norm_backward(
    arriving: &Arriving,
    (high, stats): (&Tensor, &Tensor),
    by: &Modulation,
    sums: &Sums,
) -> (Tensor, Option<Tensor>) {
    let (b, n, d) = arriving.dy.size3().expect("gradients are [B, N, D]");
    let len = b * n * d;
    let ([_, scale, gate, h], stride) = by.parts(b, n, d);
    let strides = sums.shift.stride();
    let chunks = sums.shift.size()[0];
    let sum = |t: &Tensor| {
        assert_eq!((t.kind(), t.stride(), t.size()), (Kind::Float, strides.clone(), vec![chunks, b, d]), "sums");
        assert!(t.device().is_cuda() && strides[2] == 1, "sums over tokens");
        t.data_ptr()
    };
    assert_eq!(by.branch.is_some(), sums.gate.is_some() && sums.branch.is_some(), "sums of a branch");
    let dx = arriving.dy.empty_like();
    let dh = by.branch.map(|_| dx.empty_like());
    // SAFETY: sizes are checked; the new tensors have the sizes of dy.
    let code = unsafe {
        lcf_norm_backward(
            arriving.dx.map_or(null_mut(), |t| bf16(t, len)),
            arriving.direct.map_or(null_mut(), |t| fp32(t, b * d)),
            bf16(arriving.dy, len),
            bf16(high, len),
            fp32(stats, 2 * b * n),
            scale,
            gate,
            h,
            stride,
            dx.data_ptr(),
            dh.as_ref().map_or(null_mut(), Tensor::data_ptr),
            sum(sums.shift),
            sum(sums.scale),
            sums.gate.map_or(null_mut(), sum),
            sums.branch.map_or(null_mut(), |t| fp32(t, b * chunks * d)),
            strides[0],
            strides[1],
            n as c_int,
            b as c_int,
            chunks as c_int,
            d as c_int,
            stream(&dx),
        )
    };
    check("norm backward", code);
    (dx, dh)
}

/// Rows of the sums that [`gelu_input_gradient`] makes.
pub fn gelu_parts(width: i64, hidden: i64) -> i64 {
    match mlp_parts(width, hidden) {
        0 => GELU_PARTS,
        parts => parts,
    }
}

/// (dy W) gelu'(z): dy `[.., N]`, weight `[N, K]`, z `[.., K]`; `sums`, fp32 `[gelu_parts(N, K), K]`, gets its sums over
/// shares of the rows. z is used up: on Hopper its memory becomes the result's. The weight is read as [`linear_gelu`] does.
pub fn gelu_input_gradient(dy: &Tensor, weight: &Tensor, z: Tensor, sums: &Tensor) -> Tensor {
    let ((rows, n), (_, k)) = (matrix(dy), matrix(weight));
    assert_eq!(matrix(sums), (gelu_parts(n, k), k), "sums of a gradient");
    assert_eq!(matrix(&z), (rows, k), "rows and columns of a gradient");
    if mlp_parts(n, k) == 0 {
        let dz = input_gradient(dy, weight);
        gelu_backward(&dz, &z, sums);
        return dz;
    }
    // SAFETY: sizes are checked.
    let code = unsafe {
        lcf_mlp_backward(
            bf16(dy, rows * n),
            bf16(weight, n * k),
            bf16(&z, rows * k),
            bf16(&z, rows * k),
            fp32(sums, sums.numel() as i64),
            rows as c_int,
            n as c_int,
            k as c_int,
            stream(dy),
        )
    };
    check("gradient through GELU", code);
    z
}

/// d *= gelu'(z) in place, both `[.., F]`; `sums`, fp32 `[parts, F]`, gets the sums over `parts` shares of the rows.
fn gelu_backward(d: &Tensor, z: &Tensor, sums: &Tensor) {
    let ((rows, columns), (parts, _)) = (matrix(d), matrix(sums));
    assert!(columns % 8 == 0, "{columns} columns");
    // SAFETY: sizes are checked.
    let code = unsafe {
        lcf_gelu_backward(
            bf16(d, rows * columns),
            bf16(z, rows * columns),
            fp32(sums, parts * columns),
            parts as c_int,
            rows,
            columns as c_int,
            stream(d),
        )
    };
    check("gelu backward", code);
}

#[cfg(all(test, feature = "cuda-tests"))]
#[allow(clippy::print_stderr, reason = "how far results are off is read on the machine with the GPU")]
mod norm_tests;

#[cfg(all(test, feature = "cuda-tests"))]
mod tests {
    //! Run on a GPU machine with `--features cuda-tests`. The truth is what libtorch makes of the same numbers in fp64.

    use super::*;

    const DEVICE: Device = Device::Cuda(0);

    fn random(size: &[i64], scale: f64) -> Tensor {
        (Tensor::randn(size, (Kind::Float, DEVICE)) * scale).to_kind(Kind::BFloat16)
    }

    fn difference(found: &Tensor, truth: &Tensor) -> f64 {
        let norm = |t: Tensor| t.square().sum(Kind::Double).sqrt().double_value(&[]);
        norm(found.to_kind(Kind::Double) - truth) / norm(truth.copy())
    }

    /// Both ways of computing: sizes of the kernels for Hopper, with rows that fill no tile, and others. What the results
    /// are written to held NaN before, so that nothing may be left out.
    #[test]
    fn the_mlp_with_gelu_is_what_libtorch_computes() {
        crate::open_cuda().unwrap();
        for (rows, width, hidden) in
            [(16384 + 37, 384, 1536), (3, 384, 1536), (1000, 384, 3072), (300, 768, 3072), (77, 128, 264)]
        {
            let poison = || drop(Tensor::full([3, rows, hidden], f64::NAN, (Kind::BFloat16, DEVICE)));
            let double = |t: &Tensor| t.to_kind(Kind::Double);
            let (x, bias) = (random(&[rows, width], 1.0), random(&[hidden], 0.5));
            let weight = random(&[hidden, width], 1.0 / (width as f64).sqrt());
            poison();
            let (z, out) = linear_gelu(&x, &weight, &bias);
            let sum = double(&x).matmul(&double(&weight).transpose(0, 1)) + double(&bias);
            let found = [difference(&z, &sum), difference(&out, &sum.gelu("tanh"))];
            eprintln!("{rows} x {width} x {hidden}: z and gelu {found:?}");
            assert!(found.iter().all(|&error| error < 3e-3), "{rows} x {width} x {hidden}: {found:?}");

            let weight = weight.transpose(0, 1).contiguous();
            let find = || {
                let (z, sums) =
                    (z.copy(), Tensor::full([gelu_parts(width, hidden), hidden], f64::NAN, (Kind::Float, DEVICE)));
                poison();
                (gelu_input_gradient(&x, &weight, z, &sums), sums)
            };
            let ((dz, sums), again) = (find(), find());
            assert!(dz == again.0 && sums == again.1, "{rows} x {width} x {hidden}: the same inputs, other numbers");
            let leaf = double(&z).set_requires_grad(true);
            let arriving = double(&x).matmul(&double(&weight));
            let truth =
                Tensor::run_backward(&[(leaf.gelu("tanh") * arriving).sum(Kind::Double)], &[leaf], false, false);
            let sum = sums.sum_dim_intlist(0, false, Kind::Double);
            let found =
                [difference(&dz, &truth[0]), difference(&sum, &truth[0].sum_dim_intlist(0, false, Kind::Double))];
            eprintln!("{rows} x {width} x {hidden}: gradient and its sums {found:?}");
            assert!(found.iter().all(|&error| error < 3e-3), "{rows} x {width} x {hidden}: {found:?}");
        }
    }

    /// Sizes that Hopper takes at once, with rows that fill no tile, and others. Outputs and workspace held NaN before.
    #[test]
    fn weight_gradients_are_what_libtorch_computes() {
        crate::open_cuda().unwrap();
        for (blocks, rows, width, hidden) in [
            (1, 16384 + 37, 384, 1536),
            (12, 16384 + 37, 384, 1536),
            (3, 1000, 384, 1536),
            (1, 3, 384, 1536),
            (2, 16384 + 37, 768, 3072),
            (13, 1000, 768, 3072),
            (2, 77, 128, 264),
        ] {
            let layers = [(3 * width, width), (width, width), (hidden, width), (width, hidden)].repeat(blocks);
            let operands: Vec<_> =
                layers.iter().map(|&(n, k)| (random(&[rows, n], 1.0), random(&[rows, k], 1.0))).collect();
            let find = || {
                let out: Vec<_> =
                    layers.iter().map(|&(n, k)| Tensor::full([n, k], f64::NAN, (Kind::Float, DEVICE))).collect();
                let each = |((dy, x), out): (&(Tensor, Tensor), &Tensor)| WeightGradient {
                    dy: dy.shallow_clone(),
                    x: x.shallow_clone(),
                    out: out.shallow_clone(),
                };
                let all: Vec<_> = operands.iter().zip(&out).map(each).collect();
                let (list, rows) = listed(&all[..all.len().min(MOST_WEIGHTS)]);
                let bytes = weight_workspace(&list, rows);
                assert_eq!(bytes > 0, mlp_parts(width, hidden) > 0, "what else Hopper takes of these sizes");
                drop(Tensor::full([bytes], 255, (Kind::Uint8, DEVICE)));
                weight_gradients(&all);
                out
            };
            for (i, (found, again)) in find().iter().zip(&find()).enumerate() {
                let ((n, k), (dy, x)) = (layers[i], &operands[i]);
                let truth = dy.to_kind(Kind::Double).transpose(0, 1).matmul(&x.to_kind(Kind::Double));
                let error = difference(found, &truth);
                eprintln!("{rows} rows, {n} x {k}: {error:.1e}");
                // A row too few or too many is a hundred times as much.
                assert!(error < 1e-4, "{rows} rows, {n} x {k}: {error:.1e}");
                assert!(found == again, "{rows} rows, {n} x {k}: the same inputs, other numbers");
            }
        }
    }
}

#[cfg(all(test, feature = "cuda-tests"))]
#[allow(clippy::print_stderr, reason = "how far results are off is read on the machine with the GPU")]
mod attention_tests;
