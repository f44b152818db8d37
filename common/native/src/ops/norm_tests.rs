//! Run on a GPU machine with `--features cuda-tests`. The truth is ATen in double precision and its differentiation.

use super::*;

const DEVICE: Device = Device::Cuda(0);

fn random(size: &[i64], kind: Kind) -> Tensor {
    Tensor::randn(size, (Kind::Float, DEVICE)).to_kind(kind)
}

/// |a - b| / |b|; what is not a number is infinitely far.
fn difference(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |t: Tensor| t.square().sum(Kind::Double).sqrt().double_value(&[]);
    let found = norm(a.to_kind(Kind::Double) - b) / norm(b.copy());
    if found.is_nan() { f64::INFINITY } else { found }
}

/// The numbers of a stream.
fn value(x: &Stream) -> Tensor {
    let bits = x.high.view_dtype(Kind::Int16).to_kind(Kind::Int) * 65536;
    let low = x.low.as_ref().map_or_else(|| bits.zeros_like(), |low| low.to_kind(Kind::Int) * 256);
    (bits + low).view_dtype(Kind::Float).to_kind(Kind::Double)
}

struct Case {
    tokens: i64,
    width: i64,
    samples: i64,
    chunks: i64,
    /// Whether there is a branch, whether the stream before has a low part, whether a gradient arrives from the next norm.
    branch: bool,
    low: bool,
    next: bool,
    /// Whether one arrives for all tokens of a sample alike.
    direct: bool,
}

fn run(case: &Case) {
    let &Case { tokens, width, samples, chunks, branch, low, next, direct } = case;
    let size = [samples, tokens, width];
    // A rest that points below zero belongs to no number that is rounded to zero.
    let high = random(&size, Kind::BFloat16) * 1.5 + 0.25;
    let high = high.masked_fill(&high.eq(0.0), 0.25);
    let low = low.then(|| Tensor::randint_low(-128, 128, size, (Kind::Int8, DEVICE)));
    let x = Stream { high, low };
    let (h, ada) = (random(&size, Kind::BFloat16), random(&[samples, 6 * width], Kind::BFloat16) * 0.5);
    // Nothing is added to the first sample: its numbers come back as they are, ties of the rounding among them.
    let _ = ada.narrow(0, 0, 1).narrow(1, 2 * width, width).zero_();
    let part = |i: i64| ada.narrow(1, i * width, width);
    let (shift, scale, gate) = (part(0), part(1), part(2));
    let by = Modulation { shift: &shift, scale: &scale, branch: branch.then_some((&gate, &h)) };
    let found = norm(&x, &by);

    let leaf = |t: &Tensor| t.to_kind(Kind::Double).set_requires_grad(true);
    let leaves = [value(&x).set_requires_grad(true), leaf(&h), leaf(&shift), leaf(&scale), leaf(&gate)];
    let [x_leaf, h_leaf, shift_leaf, scale_leaf, gate_leaf] = &leaves;
    let updated = if branch { x_leaf + gate_leaf.unsqueeze(1) * h_leaf } else { x_leaf * 1.0 };
    let normal = updated.layer_norm([width], None::<&Tensor>, None::<&Tensor>, f64::from(EPS), false);
    let y = normal * (scale_leaf.unsqueeze(1) + 1.0) + shift_leaf.unsqueeze(1);
    let places = 2f64.powi(-15);
    let far = ((value(&found.x) - &updated).abs() / (updated.abs() + 1e-3)).max().double_value(&[]);
    assert!(far <= places, "x': {far:.1e}");
    let first = |t: &Tensor| t.narrow(0, 0, 1);
    let moved = (first(&value(&found.x)) - first(&value(&x))).abs() / first(&value(&x)).abs();
    assert!(moved.max().double_value(&[]) <= places, "a stream to which nothing is added");
    assert!(difference(&found.y, &y) < 3e-3, "y");

    let (dx, dy) = (random(&size, Kind::BFloat16), random(&size, Kind::BFloat16));
    let direct = direct.then(|| random(&[samples, width], Kind::Float));
    let wide = |t: &Tensor| t.to_kind(Kind::Double);
    let mut loss = (&y * wide(&dy)).sum(Kind::Double);
    if next {
        loss += (&updated * wide(&dx)).sum(Kind::Double);
    }
    if let Some(direct) = &direct {
        loss += (&updated * wide(direct).unsqueeze(1)).sum(Kind::Double);
    }
    let asked = if branch {
        &leaves[..]
    } else {
        &[x_leaf.shallow_clone(), shift_leaf.shallow_clone(), scale_leaf.shallow_clone()]
    };
    let truth = Tensor::run_backward(&[loss], asked, false, false);

    let nan = |size: &[i64]| Tensor::full(size, f64::NAN, (Kind::Float, DEVICE));
    let (sums, branch_sums) = (nan(&[chunks, samples, 3 * width]), nan(&[samples, chunks, width]));
    let sum = |i: i64| sums.narrow(2, i * width, width);
    let (dshift, dscale, dgate) = (sum(0), sum(1), sum(2));
    let to =
        Sums { shift: &dshift, scale: &dscale, gate: branch.then_some(&dgate), branch: branch.then_some(&branch_sums) };
    let arriving = Arriving { dx: next.then_some(&dx), direct: direct.as_ref(), dy: &dy };
    let (dx, dh) = norm_backward(&arriving, (&found.x.high, &found.stats), &by, &to);
    let over_chunks = |t: &Tensor| t.sum_dim_intlist(0, false, Kind::Double);
    let mut pairs = vec![("dx", dx.shallow_clone(), &truth[0])];
    match &dh {
        Some(dh) => {
            let bias = truth[1].sum_dim_intlist([0, 1].as_slice(), false, Kind::Double);
            let found = branch_sums.sum_dim_intlist([0, 1].as_slice(), false, Kind::Double);
            assert!(difference(&found, &bias) < 4e-3, "sums of dh");
            pairs.extend([("dh", dh.shallow_clone(), &truth[1]), ("dgate", over_chunks(&dgate), &truth[4])]);
            pairs.extend([("dshift", over_chunks(&dshift), &truth[2]), ("dscale", over_chunks(&dscale), &truth[3])]);
        }
        None => {
            pairs.extend([("dshift", over_chunks(&dshift), &truth[1]), ("dscale", over_chunks(&dscale), &truth[2])])
        }
    }
    for (name, found, truth) in pairs {
        let far = difference(&found, truth);
        eprintln!("{size:?} branch {branch} low {}: {name} {far:.1e}", case.low);
        assert!(far < 4e-3, "{name}: {far:.1e}");
    }
}

#[test]
fn the_norm_and_its_gradients_are_atens() {
    crate::open_cuda().unwrap();
    tch::manual_seed(0);
    for width in [128, 256, 384, 512, 768, 1024] {
        let case =
            Case { tokens: 49, width, samples: 3, chunks: 1, branch: true, low: true, next: true, direct: false };
        run(&case);
        run(&Case { tokens: 256, samples: 2, chunks: 4, low: false, direct: true, ..case });
        run(&Case { tokens: 5, samples: 7, chunks: 2, next: false, direct: true, ..case });
        run(&Case { tokens: 9, chunks: 8, branch: false, low: false, ..case });
    }
}
