//! Run on a GPU machine with `--features cuda-tests`. The truth is ATen in fp32 on the same numbers.

use super::*;

const DEVICE: Device = Device::Cuda(0);

fn random(size: &[i64]) -> Tensor {
    Tensor::randn(size, (Kind::Float, DEVICE)).to_kind(Kind::BFloat16)
}

fn norm(x: &Tensor) -> f64 {
    x.to_kind(Kind::Double).square().sum(Kind::Double).sqrt().double_value(&[])
}

/// The allocator gives the same memory to the same requests that follow: it holds no numbers.
fn poison(bytes: &[i64]) {
    let _held: Vec<Tensor> = bytes.iter().map(|&n| Tensor::full([n], 255, (Kind::Uint8, DEVICE))).collect();
}

/// In which what is not a number is equal to itself.
fn bits(x: &Tensor) -> Tensor {
    x.view_dtype(Kind::Uint8)
}

/// The last of the samples takes no part in the backward pass.
fn run(samples: i64, tokens: i64, heads: i64) {
    let (width, back) = (heads * HEAD, samples - 1);
    let (qkv, dout) = (random(&[samples, tokens, 3 * width]), random(&[back, tokens, width]));

    let leaf = qkv.to_kind(Kind::Float).set_requires_grad(true);
    let parts = leaf.view([samples, tokens, 3, heads, HEAD]).permute([2, 0, 3, 1, 4]);
    let [q, k, v] = [0, 1, 2].map(|part| parts.select(0, part));
    let true_out = Tensor::scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, 0.0, false, None::<f64>, false);
    let true_out = true_out.transpose(1, 2).reshape([samples, tokens, width]);
    let scores = q.detach().matmul(&k.detach().transpose(-2, -1)) * (HEAD as f64).powf(-0.5);
    let true_lse = scores.logsumexp([-1].as_slice(), false) / std::f64::consts::LN_2;
    let loss = (true_out.narrow(0, 0, back) * dout.to_kind(Kind::Float)).sum(Kind::Float);
    let gradient = Tensor::run_backward(&[loss], &[&leaf], false, false).remove(0).narrow(0, 0, back);

    poison(&[2 * samples * tokens * width, 4 * samples * heads * tokens]);
    let (out, lse) = attention(&qkv, heads);
    let backward = || {
        let sums = Tensor::full([back, 3 * width], f64::NAN, (Kind::Float, DEVICE));
        // SAFETY: no pointers.
        let partial = unsafe { lcf_attention_partial(tokens as c_int, heads as c_int, back as c_int) };
        poison(&[6 * back * tokens * width, 4 * partial]);
        (attention_backward(&qkv, &out, &lse, &dout, heads, &sums), sums)
    };
    let (dqkv, sums) = backward();
    let (again, sums_again) = backward();
    assert!(bits(&dqkv) == bits(&again) && bits(&sums) == bits(&sums_again), "the same inputs, other bits");

    let check = |name: &str, found: &Tensor, truth: &Tensor, of: &Tensor| {
        let far = norm(&(found.to_kind(Kind::Float) - truth)) / norm(of);
        eprintln!("{samples} samples, {tokens} tokens, {heads} heads: {name} {far:.1e}");
        // Not a number fails, too.
        assert!(far < 8e-3, "{samples} samples, {tokens} tokens, {heads} heads: {name} {far:.1e}");
    };
    check("out", &out, &true_out, &true_out);
    check("lse", &lse, &true_lse, &true_lse);
    for (i, name) in (0..).zip(["q", "k", "v"]) {
        let part = |t: &Tensor| t.narrow(-1, i * width, width);
        let truth = part(&gradient);
        check(name, &part(&dqkv), &truth, &truth);
        // Measured by what is summed: over keys, the gradients cancel.
        check(name, &part(&sums), &truth.sum_dim_intlist(1, false, Kind::Float), &truth);
    }
}

#[test]
fn the_attention_and_its_gradients_are_atens() {
    crate::open_cuda().unwrap();
    tch::manual_seed(0);
    assert!(attention_takes(256, DEVICE) && !attention_takes(0, DEVICE) && !attention_takes(256, Device::Cpu));
    for tokens in [256, 64, 9, 200, 255, 129, 576, 1024] {
        if !attention_takes(tokens, DEVICE) {
            eprintln!("this card does not take {tokens} tokens");
            continue;
        }
        for heads in [6, 2, 12] {
            run(3, tokens, heads);
        }
        // More heads than processors.
        run(31, tokens, 6);
    }
}
