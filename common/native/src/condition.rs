//! What a DiT computes for a sample rather than for a token, and sums over tokens and samples, on CUDA. Each operation
//! checks what it is given and panics when that does not fit.

use crate::ops::{Stream, WORKSPACE, bf16, check, data, fp32, matrix, stream, workspace};
use std::{
    ffi::{c_int, c_long, c_void},
    ptr::{null, null_mut},
};
use tch::{Kind, Tensor};

/// Most chunks of tokens whose sums [`modulation_sums`] adds.
const MOST_CHUNKS: i64 = 8;
/// Most jobs of [`column_sums`].
const MOST_COLUMNS: usize = 8;
/// Shares of the rows that [`row_shares`] sums over.
const SHARES: i64 = 264;

#[repr(C)]
struct RawProducts {
    a: *const c_void,
    b: *const c_void,
    bias: *const c_void,
    d: *mut c_void,
    workspace: *mut c_void,
    m: i64,
    n: i64,
    k: i64,
    lead: [i64; 3],
    step: [i64; 4],
    workspace_bytes: i64,
    count: c_int,
    transpose_a: c_int,
    transpose_b: c_int,
    wide: c_int,
}

#[repr(C)]
struct RawModulations {
    input: *const c_void,
    out: *mut c_void,
    gradient: *mut c_void,
    block_bias: c_long,
    stride: c_long,
    head_bias: c_long,
    chunks: c_int,
    blocks: c_int,
    samples: c_int,
    columns: c_int,
    head: c_int,
}

#[repr(C)]
struct RawColumns {
    input: *const c_void,
    out: *mut c_void,
    in_stride: c_long,
    out_stride: c_long,
    matrices: c_int,
    rows: c_int,
    columns: c_int,
}

#[repr(C)]
struct RawRows {
    input: *const c_void,
    out: *mut c_void,
    rows: c_long,
    columns: c_int,
}

#[repr(C)]
struct RawLeave {
    x: *mut c_void,
    y: *mut c_void,
    low: *mut c_void,
    ends: *const c_void,
    mean: *mut c_void,
    slots: c_int,
    tokens: c_int,
    width: c_int,
}

unsafe extern "C" {
    fn lcf_products(p: *const RawProducts, stream: *mut c_void) -> c_int;
    fn lcf_linear_silu(
        x: *const c_void,
        weight: *const c_void,
        bias: *const c_void,
        z: *mut c_void,
        y: *mut c_void,
        rows: c_int,
        columns: c_int,
        k: c_int,
        stream: *mut c_void,
    ) -> c_int;
    fn lcf_silu_backward(
        parts: *const c_void,
        count: c_int,
        z: *const c_void,
        d: *mut c_void,
        bias: *mut c_void,
        rows: c_int,
        columns: c_int,
        stream: *mut c_void,
    ) -> c_int;
    fn lcf_modulation_sums(m: *const RawModulations, stream: *mut c_void) -> c_int;
    fn lcf_column_sums(columns: *const RawColumns, count: c_int, stream: *mut c_void) -> c_int;
    fn lcf_row_shares(rows: *const RawRows, shares: c_int, stream: *mut c_void) -> c_int;
    fn lcf_add_positions(
        x: *mut c_void,
        positions: *const c_void,
        samples: c_int,
        numbers: c_int,
        stream: *mut c_void,
    ) -> c_int;
    fn lcf_mean_and_leave(l: *const RawLeave, samples: c_int, stream: *mut c_void) -> c_int;
}

/// Matrices `[L, R, C]` whose rows are contiguous, or one `[R, C]` that all products share.
struct Matrices {
    data: *mut c_void,
    size: [i64; 2],
    lead: i64,
    step: i64,
}

impl Matrices {
    fn of(x: &Tensor, kind: Kind, count: i64) -> Self {
        let (size, stride) = (x.size(), x.stride());
        let dims = size.len();
        assert!(x.device().is_cuda() && x.kind() == kind, "{:?} on {:?}", x.kind(), x.device());
        assert!(dims == 2 || (dims == 3 && size[0] == count), "{count} matrices in a tensor of {size:?}");
        assert_eq!(stride[dims - 1], 1, "columns that lie apart");
        let step = if dims == 3 { stride[0] } else { 0 };
        Self { data: x.data_ptr(), size: [size[dims - 2], size[dims - 1]], lead: stride[dims - 2], step }
    }
}

/// Column-major products d = op(a) op(b) of sizes m, n, k, as many as there are matrices in `d`.
fn products(a: &Tensor, b: &Tensor, d: &Tensor, [m, n, k]: [i64; 3], transpose: [bool; 2], bias: Option<&Tensor>) {
    let count = d.size3().expect("several matrices").0;
    let [a, b] = [a, b].map(|x| Matrices::of(x, Kind::BFloat16, count));
    let bias = bias.map(|x| Matrices::of(x, Kind::BFloat16, count));
    let (kind, to) = (d.kind(), Matrices::of(d, d.kind(), count));
    let fits = |x: &Matrices, rows, columns| assert_eq!(x.size, [rows, columns], "rows and columns of a product");
    // Row-major matrices are column-major ones with sides swapped.
    let swapped = |flip: bool, rows: i64, columns: i64| if flip { [rows, columns] } else { [columns, rows] };
    let ([a_rows, a_columns], [b_rows, b_columns]) = (swapped(transpose[0], m, k), swapped(transpose[1], k, n));
    fits(&a, a_rows, a_columns);
    fits(&b, b_rows, b_columns);
    fits(&to, n, m);
    bias.iter().for_each(|x| fits(x, 1, m));
    assert!(kind == Kind::Float || kind == Kind::BFloat16, "{kind:?}");
    let stream = stream(d);
    let raw = RawProducts {
        a: a.data,
        b: b.data,
        bias: bias.as_ref().map_or(null(), |x| x.data.cast_const()),
        d: to.data,
        workspace: workspace(d.device(), stream),
        m,
        n,
        k,
        lead: [a.lead, b.lead, to.lead],
        step: [a.step, b.step, to.step, bias.as_ref().map_or(0, |x| x.step)],
        workspace_bytes: WORKSPACE,
        count: count as c_int,
        transpose_a: c_int::from(transpose[0]),
        transpose_b: c_int::from(transpose[1]),
        wide: c_int::from(kind == Kind::Float),
    };
    // SAFETY: the matrices are views of tensors that hold them.
    check("matrix products", unsafe { lcf_products(&raw, stream) });
}

/// x W^T + b of several layers: x `[A, K]`, weights `[L, N, K]`, biases `[L, 1, N]` into `out` `[L, A, N]`.
pub fn linears(x: &Tensor, weights: &Tensor, biases: &Tensor, out: &Tensor) {
    let ((rows, k), (_, _, n)) = (matrix(x), out.size3().expect("several outputs"));
    products(weights, x, out, [n, rows, k], [true, false], Some(biases));
}

/// Gradients dy W of the inputs of several layers: dy `[L, S, N]`, weights `[L, N, K]` into `out`, fp32 `[L, S, K]`.
pub fn input_gradients(dy: &Tensor, weights: &Tensor, out: &Tensor) {
    let ((_, rows, n), (_, k)) = (dy.size3().expect("several gradients"), matrix(out));
    products(weights, dy, out, [k, rows, n], [false, false], None);
}

/// Gradients dy^T x of the weights of several layers: dy `[L, S, N]`, x `[S, K]` into `out`, fp32 `[L, N, K]`.
pub fn weight_gradients(dy: &Tensor, x: &Tensor, out: &Tensor) {
    let ((_, rows, n), (_, k)) = (dy.size3().expect("several gradients"), matrix(x));
    products(x, dy, out, [k, n, rows], [false, true], None);
}

/// (z, SiLU(z)) of z = x W^T + b: x `[A, K]`, weight `[N, K]`; K a multiple of 128, N of 16.
pub fn linear_silu(x: &Tensor, weight: &Tensor, bias: &Tensor) -> (Tensor, Tensor) {
    let ((rows, k), (n, _)) = (matrix(x), matrix(weight));
    assert!(k % 128 == 0 && n % 16 == 0, "{k} inputs, {n} outputs");
    let [z, y] = [0; 2].map(|_| Tensor::empty([rows, n], (Kind::BFloat16, x.device())));
    // SAFETY: sizes are checked.
    let code = unsafe {
        lcf_linear_silu(
            bf16(x, rows * k),
            bf16(weight, n * k),
            bf16(bias, n),
            z.data_ptr(),
            y.data_ptr(),
            rows as c_int,
            n as c_int,
            k as c_int,
            stream(x),
        )
    };
    check("linear layer with SiLU", code);
    (z, y)
}

/// The numbers of `gradient`, fp32, from `offset` on, of which `len` are written.
fn place(gradient: &Tensor, offset: i64, len: i64) -> *mut c_void {
    fp32(&gradient.narrow(0, offset, len), len)
}

/// Gradient of z, `[S, N]`, from those of SiLU(z), the sum of `parts`, fp32 `[P, S, N]`; z `[S, N]` or longer. Its sums over
/// samples go into `gradient` from `offset` on.
pub fn silu_backward(parts: &Tensor, z: &Tensor, gradient: &Tensor, offset: i64) -> Tensor {
    let (count, rows, n) = parts.size3().expect("several parts");
    assert!(n % 8 == 0, "{n} columns");
    let d = Tensor::empty([rows, n], (Kind::BFloat16, z.device()));
    // SAFETY: sizes are checked.
    let code = unsafe {
        lcf_silu_backward(
            fp32(parts, count * rows * n),
            count as c_int,
            bf16(z, rows * n),
            d.data_ptr(),
            place(gradient, offset, n),
            rows as c_int,
            n as c_int,
            stream(z),
        )
    };
    check("SiLU backward", code);
    d
}

/// Where the gradients of the biases of modulations lie in a flat gradient.
#[derive(Clone, Copy, Debug)]
pub struct BiasPlaces {
    /// That of the first block.
    pub first: i64,
    /// From block to block.
    pub stride: i64,
    /// That of the last layer.
    pub head: i64,
}

/// `sums`, fp32 `[chunks, L + 1, S, C]`, added over chunks: `[L + 1, S, C]`; and added over samples too, into `gradient`. Of
/// the last matrix the first `head` columns count, the others are left as they are.
pub fn modulation_sums(sums: &Tensor, head: i64, gradient: &Tensor, places: BiasPlaces) -> Tensor {
    let [chunks, matrices, samples, columns]: [i64; 4] = sums.size().try_into().expect("four dimensions");
    assert!((1..=MOST_CHUNKS).contains(&chunks) && columns % 64 == 0 && head % 64 == 0, "{:?}", sums.size());
    let out = Tensor::empty([matrices, samples, columns], (Kind::BFloat16, sums.device()));
    if matrices > 1 {
        let _ = place(gradient, places.first + (matrices - 2) * places.stride, columns);
    }
    let _ = place(gradient, places.head, head);
    let raw = RawModulations {
        input: fp32(sums, chunks * matrices * samples * columns),
        out: out.data_ptr(),
        gradient: fp32(gradient, 0),
        block_bias: places.first,
        stride: places.stride,
        head_bias: places.head,
        chunks: chunks as c_int,
        blocks: (matrices - 1) as c_int,
        samples: samples as c_int,
        columns: columns as c_int,
        head: head as c_int,
    };
    // SAFETY: sizes are checked, those of the first and last numbers written above.
    check("sums of modulations", unsafe { lcf_modulation_sums(&raw, stream(sums)) });
    out
}

/// Matrices to be summed over their rows, and where the sums go.
#[derive(Debug)]
pub struct Columns<'a> {
    /// fp32 `[L, R, C]`, each matrix contiguous.
    pub of: &'a Tensor,
    /// Of the first sum in the gradient.
    pub offset: i64,
    /// From sum to sum.
    pub stride: i64,
}

/// Sums over rows, into `gradient`, all at once.
pub fn column_sums(gradient: &Tensor, all: &[Columns]) {
    assert!(all.len() <= MOST_COLUMNS, "{} sums", all.len());
    let raw = |one: &Columns| {
        let (matrices, rows, columns) = one.of.size3().expect("matrices are [L, R, C]");
        let _ = place(gradient, one.offset + (matrices - 1) * one.stride, columns);
        let (_, input) = (fp32(gradient, 0), fp32(&one.of.select(0, 0), rows * columns));
        RawColumns {
            input,
            out: place(gradient, one.offset, columns),
            in_stride: one.of.stride()[0],
            out_stride: one.stride,
            matrices: matrices as c_int,
            rows: rows as c_int,
            columns: columns as c_int,
        }
    };
    let raw: Vec<RawColumns> = all.iter().map(raw).collect();
    // SAFETY: sizes are checked, those of the first and last numbers written above.
    check("column sums", unsafe { lcf_column_sums(raw.as_ptr(), raw.len() as c_int, stream(gradient)) });
}

/// Sums over shares of the rows of two matrices `[.., C]`: fp32 `[1, shares, C]` each.
pub fn row_shares(matrices: [&Tensor; 2]) -> [Tensor; 2] {
    let outs = matrices.map(|x| Tensor::empty([1, SHARES, matrix(x).1], (Kind::Float, x.device())));
    let raw = [0, 1].map(|i| {
        let (rows, columns) = matrix(matrices[i]);
        RawRows { input: bf16(matrices[i], rows * columns), out: outs[i].data_ptr(), rows, columns: columns as c_int }
    });
    // SAFETY: sizes are checked.
    check("sums of rows", unsafe { lcf_row_shares(raw.as_ptr(), SHARES as c_int, stream(matrices[0])) });
    outs
}

/// Adds positions, fp32 `[1, N, D]`, to embedded patches, bf16 `[A, N, D]`, in place.
pub fn add_positions(x: &Tensor, positions: &Tensor) {
    let (samples, tokens, width) = x.size3().expect("patches are [A, N, D]");
    assert!(width % 4 == 0 && samples <= 65_535, "{samples} samples of {width}");
    // SAFETY: sizes are checked.
    let code = unsafe {
        lcf_add_positions(
            bf16(x, samples * tokens * width),
            fp32(positions, tokens * width),
            samples as c_int,
            (tokens * width) as c_int,
            stream(x),
        )
    };
    check("positions", code);
}

/// Means over tokens of `x.high`, `[A, N, D]` to fp32 `[A, D]`; then zeros into x and y, `[A, N, D]`, for the samples that
/// `ends`, bool `[K]`, says of the first K.
pub fn mean_and_leave(x: &Stream, y: &Tensor, ends: Option<&Tensor>) -> Tensor {
    let (samples, tokens, width) = x.high.size3().expect("a stream is [A, N, D]");
    let slots = ends.map_or(0, |ends| ends.size()[0]);
    assert!(width % 128 == 0 && slots <= samples, "{slots} of {samples} samples of {width}");
    let len = samples * tokens * width;
    let mean = Tensor::empty([samples, width], (Kind::Float, y.device()));
    let raw = RawLeave {
        x: bf16(&x.high, len),
        y: bf16(y, len),
        low: x.low.as_ref().map_or(null_mut(), |low| data(low, Kind::Int8, len)),
        ends: ends.map_or(null(), |ends| data(ends, Kind::Bool, slots).cast_const()),
        mean: mean.data_ptr(),
        slots: slots as c_int,
        tokens: tokens as c_int,
        width: width as c_int,
    };
    // SAFETY: sizes are checked.
    check("means over tokens", unsafe { lcf_mean_and_leave(&raw, samples as c_int, stream(y)) });
    mean
}

#[cfg(all(test, feature = "cuda-tests"))]
#[allow(clippy::print_stderr, reason = "how far results are off is read on the machine with the GPU")]
mod tests {
    //! Run on a GPU machine with `--features cuda-tests`, against libtorch in fp64.

    use super::*;
    use tch::Device;

    const DEVICE: Device = Device::Cuda(0);
    const FLOAT: (Kind, Device) = (Kind::Float, DEVICE);

    fn random(size: &[i64]) -> Tensor {
        crate::open_cuda().unwrap();
        Tensor::randn(size, FLOAT)
    }

    fn random_bf16(size: &[i64]) -> Tensor {
        random(size).to_kind(Kind::BFloat16)
    }

    fn wide(x: &Tensor) -> Tensor {
        x.to_kind(Kind::Double)
    }

    /// Asserts that the length of the difference is at most `most` of the expected one.
    fn near(what: &str, found: &Tensor, expected: &Tensor, most: f64) {
        let length = |x: Tensor| x.square().sum(Kind::Double).sqrt().double_value(&[]);
        let ratio = length(wide(found) - expected) / length(expected.copy());
        eprintln!("{what}: {ratio:.2e}");
        assert!(ratio <= most, "{what}: {ratio:e}, expected at most {most:e}");
    }

    /// Rounding of a result to bf16, and of a sum of fp32.
    const BF16: f64 = 3e-3;
    const FP32: f64 = 1e-5;

    fn poisoned(size: &[i64]) -> Tensor {
        Tensor::full(size, f64::NAN, FLOAT)
    }

    #[test]
    fn layers_of_one_size_are_multiplied_at_once() {
        for (layers, rows, n, k) in [(12, 275, 2304, 384), (3, 5, 768, 128), (1, 19, 768, 384)] {
            // Weights and biases of a layer a stride apart, outputs with columns to spare.
            let stride = n * k + n + 64;
            let flat = random_bf16(&[layers * stride]);
            let weights = flat.as_strided([layers, n, k], [stride, k, 1], 0);
            let biases = flat.as_strided([layers, 1, n], [stride, n, 1], n * k);
            let x = random_bf16(&[rows, k]);
            let all = poisoned(&[layers, rows, n + 128]).to_kind(Kind::BFloat16);
            let out = all.narrow(2, 0, n);
            linears(&x, &weights, &biases, &out);
            let (w, x64) = (wide(&weights), wide(&x));
            near("linears", &out, &(x64.unsqueeze(0).matmul(&w.transpose(1, 2)) + wide(&biases)), BF16);
            assert!(bool::try_from(all.narrow(2, n, 128).isnan().all()).unwrap(), "what is beside the outputs stays");

            let dy = random_bf16(&[layers, rows, n + 128]).narrow(2, 0, n);
            let dx = poisoned(&[layers, rows, k]);
            input_gradients(&dy, &weights, &dx);
            near("input gradients", &dx, &wide(&dy).matmul(&w), FP32);
            let gradient = poisoned(&[layers * stride]);
            let own = gradient.as_strided([layers, n, k], [stride, k, 1], 0);
            weight_gradients(&dy, &x, &own);
            near("weight gradients", &own, &wide(&dy).transpose(1, 2).matmul(&x64), FP32);
        }
    }

    #[test]
    fn linear_and_silu_and_back() {
        for (rows, n, k) in [(275, 384, 256), (7, 128, 128), (16, 1024, 1024), (73, 768, 768)] {
            let (x, weight, bias) =
                (random_bf16(&[rows, k]), random_bf16(&[n, k]) * (k as f64).powf(-0.5), random_bf16(&[n]));
            let (z, y) = linear_silu(&x, &weight, &bias);
            near("linear", &z, &(wide(&x).matmul(&wide(&weight).transpose(0, 1)) + wide(&bias)), BF16);
            let s = wide(&z).sigmoid();
            near("silu", &y, &(wide(&z) * &s), BF16);
            let parts = random(&[13, rows, n]);
            let gradient = poisoned(&[n + 128]);
            let d = silu_backward(&parts, &z, &gradient, 64);
            let slope = &s * (wide(&z) * (1.0 - &s) + 1.0);
            let expected = wide(&parts).sum_dim_intlist(0, false, Kind::Double) * slope;
            near("silu backward", &d, &expected, BF16);
            near("silu bias", &gradient.narrow(0, 64, n), &expected.sum_dim_intlist(0, false, Kind::Double), FP32);
            assert_eq!(gradient.isnan().sum(Kind::Int64).int64_value(&[]), 128);
        }
    }

    #[test]
    fn modulations_are_summed_over_chunks_and_samples() {
        for (chunks, blocks, samples, d) in [(4, 12, 256, 384), (1, 2, 7, 128), (3, 3, 33, 256)] {
            let sums = random(&[chunks, blocks + 1, samples, 6 * d]);
            let _ = sums.select(1, blocks).narrow(2, 2 * d, 4 * d).fill_(f64::NAN);
            let places = BiasPlaces { first: 64, stride: 6 * d + 64, head: 64 + blocks * (6 * d + 64) };
            let gradient = poisoned(&[places.head + 2 * d]);
            let out = modulation_sums(&sums, 2 * d, &gradient, places);
            let expected = wide(&sums).sum_dim_intlist(0, false, Kind::Double);
            near("modulations", &out.narrow(0, 0, blocks), &expected.narrow(0, 0, blocks), BF16);
            let head = expected.select(0, blocks).narrow(1, 0, 2 * d);
            near("head", &out.select(0, blocks).narrow(1, 0, 2 * d), &head, BF16);
            let biases = gradient.as_strided([blocks, 6 * d], [places.stride, 1], places.first);
            let of_blocks = expected.narrow(0, 0, blocks).sum_dim_intlist(1, false, Kind::Double);
            near("biases", &biases, &of_blocks, FP32);
            let of_head = head.sum_dim_intlist(0, false, Kind::Double);
            near("head bias", &gradient.narrow(0, places.head, 2 * d), &of_head, FP32);
        }
    }

    #[test]
    fn sums_over_rows_of_many_matrices() {
        let (first, second) = (random(&[12, 1056, 1536]), random(&[3, 2, 65, 40]));
        let gradient = poisoned(&[12 * 1600 + 100 + 12]);
        let [out, dx] = [random_bf16(&[64, 256, 12]), random_bf16(&[5, 9, 384])];
        let shares = row_shares([&out, &dx]);
        let odd = random_bf16(&[301, 27]);
        let [of_odd, of_wide] = row_shares([&odd, &random_bf16(&[3, 2048])]);
        assert_eq!((of_odd.size(), of_wide.size()), (vec![1, SHARES, 27], vec![1, SHARES, 2048]));
        let part = second.select(1, 1);
        column_sums(
            &gradient,
            &[
                Columns { of: &first, offset: 64, stride: 1600 },
                Columns { of: &part, offset: 0, stride: 1600 },
                Columns { of: &shares[0], offset: 12 * 1600 + 100, stride: 0 },
            ],
        );
        let expected = |x: &Tensor| wide(x).sum_dim_intlist(-2, false, Kind::Double);
        near("first", &gradient.as_strided([12, 1536], [1600, 1], 64), &expected(&first), FP32);
        near("part", &gradient.as_strided([3, 40], [1600, 1], 0), &expected(&part), FP32);
        near("out", &gradient.narrow(0, 12 * 1600 + 100, 12), &expected(&out.view([-1, 12])), FP32);
        let all = |x: &Tensor| wide(x).sum_dim_intlist([0, 1].as_slice(), false, Kind::Double);
        near("dx", &all(&shares[1]), &all(&dx), FP32);
        near("odd", &all(&of_odd), &expected(&odd), FP32);
    }

    #[test]
    fn positions_means_and_leaving() {
        for (samples, tokens, d) in [(275, 256, 384), (3, 9, 128)] {
            let size = [samples, tokens, d];
            let (x, positions) = (random_bf16(&size), random(&[1, tokens, d]));
            let expected = wide(&x) + wide(&positions);
            add_positions(&x, &positions);
            near("positions", &x, &expected, BF16);
            let low = Tensor::randint(256, size, FLOAT).to_kind(Kind::Int8);
            let (x, y) = (Stream { high: x, low: Some(low) }, random_bf16(&size));
            let ends = Tensor::from_slice(&[true, false, true]).to_device(DEVICE);
            let all = [&x.high, x.low.as_ref().unwrap(), &y];
            let before = all.map(Tensor::copy);
            let expected = wide(&before[0]).mean_dim(1, false, Kind::Double);
            near("mean alone", &mean_and_leave(&x, &y, None), &expected, FP32);
            assert!(all.into_iter().zip(&before).all(|(found, before)| found == before));
            near("mean", &mean_and_leave(&x, &y, Some(&ends)), &expected, FP32);
            for (found, expected) in all.into_iter().zip(&before) {
                let _ = expected.narrow(0, 0, 3).masked_fill_(&ends.view([3, 1, 1]), 0.0);
                assert_eq!(found, expected);
            }
        }
    }
}
