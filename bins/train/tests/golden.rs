//! Losses, optimiser and ten steps of training against PyTorch (`common/model/tests/golden/gen.py`). Each comparison has
//! a twin with a mistake, which must fail.

#[path = "../../../common/model/tests/golden/compare.rs"]
pub mod compare;

use compare::{Golden, assert_same, clearly_differ};
use lcf_model::{Dit, ModelConfig, Precision, adamw::AdamW, config::Input, params::Layout};
use lcf_train::{
    TrainConfig,
    batch::Batch,
    contrast::{ContrastConfig, Denominator, Norm, Terms, contrast, pool},
    flow::{Reduction, flow_loss},
    objective::losses,
    optim::{OptimConfig, clip, ema, norm},
};
use serde_json::json;
use tch::{Kind, Tensor};

fn leaf(tensor: &Tensor) -> Tensor {
    tensor.copy().set_requires_grad(true)
}

/// The gradient of a leaf; zero where none came.
fn gradient(leaf: &Tensor) -> Tensor {
    let gradient = leaf.grad();
    if gradient.defined() { gradient } else { leaf.zeros_like() }
}

/// Equation 12 for each sample, and the gradient of its mean over samples.
fn flow(golden: &Golden, reduction: Reduction) -> [Tensor; 2] {
    let velocity = leaf(golden.get("flow.velocity"));
    let loss = flow_loss(&velocity, golden.get("flow.target"), reduction);
    loss.mean(Kind::Float).backward();
    [loss.detach(), velocity.grad()]
}

#[test]
fn the_flow_loss_is_equation_12_in_both_reductions_and_neither_passes_for_the_other() {
    let golden = Golden::open("losses");
    for (reduction, name, other) in [(Reduction::Mean, "mean", "sum"), (Reduction::Sum, "sum", "mean")] {
        let [loss, gradient] = flow(&golden, reduction);
        assert_same("loss", &loss, golden.get(&format!("flow.{name}.loss")));
        assert_same("gradient", &gradient, golden.get(&format!("flow.{name}.grad")));
        assert!(clearly_differ(&loss, golden.get(&format!("flow.{other}.loss"))));
        assert!(clearly_differ(&gradient, golden.get(&format!("flow.{other}.grad"))));
    }
}

/// Every reading of Equation 14, named as `gen.py` names it.
fn readings() -> Vec<(String, ContrastConfig)> {
    let mut readings = Vec::new();
    for (denominator, d) in [(Denominator::Algorithm1, "algorithm1"), (Denominator::InfoNce, "infonce")] {
        for (norm, n) in [(Norm::None, "none"), (Norm::L2, "l2")] {
            readings.push((format!("{d}.{n}"), ContrastConfig { denominator, norm, ..PLAIN }));
        }
    }
    readings
}

const PLAIN: ContrastConfig = ContrastConfig {
    lambda: 1.0,
    tau: 0.5,
    layer: 1,
    denominator: Denominator::InfoNce,
    norm: Norm::None,
    terms: Terms::Both,
};

/// What `gen.py` stores of a reading, in this order; the gradient is by the anchors.
const STORED: [&str; 4] = ["loss", "pull", "push", "grad"];

/// [`STORED`] of these tokens. As in training, anchors are rows of the batch, and other rows have no gradient.
fn contrasted(batch: &Tensor, positives: &Tensor, config: &ContrastConfig) -> [Tensor; 4] {
    let (batch, anchors) = (leaf(batch), positives.size()[0]);
    let rows = pool(&batch, config);
    let found = contrast(&rows.narrow(0, 0, anchors), &pool(positives, config), &rows, None, config);
    found.loss.backward();
    let gradient = batch.grad();
    let rest = gradient.narrow(0, anchors, batch.size()[0] - anchors);
    assert_eq!(rest.count_nonzero(None::<i64>).int64_value(&[]), 0);
    [found.loss.detach(), found.pull, found.push, gradient.narrow(0, 0, anchors)]
}

/// [`STORED`] of the tokens that `gen.py` stores.
fn of_stored(golden: &Golden, config: &ContrastConfig) -> [Tensor; 4] {
    contrasted(golden.get("contrast.batch"), golden.get("contrast.positives"), config)
}

/// Whether what was found is clearly not what is stored under `name`.
fn differs(found: &[Tensor], golden: &Golden, name: &str) -> bool {
    STORED.iter().zip(found).any(|(part, found)| clearly_differ(found, golden.get(&format!("{name}.{part}"))))
}

fn assert_stored(found: &[Tensor], golden: &Golden, name: &str) {
    for (part, found) in STORED.iter().zip(found) {
        let name = format!("{name}.{part}");
        assert_same(&name, found, golden.get(&name));
    }
}

#[test]
fn the_contrastive_loss_and_its_gradient_in_every_reading() {
    let golden = Golden::open("losses");
    for (name, config) in &readings() {
        assert_stored(&of_stored(&golden, config), &golden, name);
    }
}

#[test]
fn twin_no_reading_passes_for_another() {
    let golden = Golden::open("losses");
    let readings = readings();
    for (name, config) in &readings {
        let found = of_stored(&golden, config);
        for (other, _) in readings.iter().filter(|(other, _)| other != name) {
            assert!(differs(&found, &golden, other), "{name} passes for {other}");
        }
    }
}

#[test]
fn twin_another_temperature_or_another_positive_is_told_apart() {
    let golden = Golden::open("losses");
    let found = of_stored(&golden, &PLAIN);
    assert!(differs(&found, &golden, "tau_doubled"));
    assert!(differs(&found, &golden, "positives_shuffled"));
    assert_stored(&of_stored(&golden, &ContrastConfig { tau: 1.0, ..PLAIN }), &golden, "tau_doubled");
}

#[test]
fn features_so_far_apart_that_exp_underflows_give_the_true_loss() {
    let golden = Golden::open("losses");
    let (batch, positives) = (golden.get("contrast.batch"), golden.get("contrast.positives").roll([1], [0]));
    assert_stored(&contrasted(&(batch * 128.0), &(positives * 128.0), &PLAIN), &golden, "far");
}

/// Table 2, with the warm-up left to the learning rates that are stored.
const OPTIM: OptimConfig =
    OptimConfig { lr: 0.0, warmup_epochs: 0.0, weight_decay: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, clip: 1.0 };
/// Faster than the paper's, so that ten steps move the average.
const DECAY: f64 = 0.99;

/// Parameters, average and optimiser state.
struct State {
    flat: Tensor,
    average: Tensor,
    optim: AdamW,
}

impl State {
    fn new(start: &Tensor) -> Self {
        Self { flat: start.copy(), average: start.copy(), optim: AdamW::new(OPTIM.hyper(), start) }
    }

    /// Clips, updates, averages. Returns the norm before clipping.
    fn step(&mut self, gradient: &Tensor, lr: f64) -> Tensor {
        let mut gradient = gradient.copy();
        let length = norm(&gradient);
        clip(&mut gradient, &length, OPTIM.clip);
        self.optim.update(&mut self.flat, &gradient, lr);
        ema(&mut self.average, &self.flat, DECAY);
        length
    }
}

fn rates(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double)).unwrap()
}

/// Ten steps from stored gradients.
fn ten_steps(golden: &Golden) -> (State, Tensor) {
    let mut state = State::new(golden.get("start"));
    let gradients = golden.get("gradients");
    let rates = rates(golden.get("rates"));
    let norms: Vec<Tensor> =
        rates.iter().enumerate().map(|(i, &rate)| state.step(&gradients.get(i as i64), rate)).collect();
    assert_eq!(norms.len(), 10);
    (state, Tensor::stack(&norms, 0))
}

#[test]
fn ten_steps_of_clip_adamw_and_ema() {
    let golden = Golden::open("optimiser");
    let (state, norms) = ten_steps(&golden);
    // Some gradients are clipped and some are not.
    let clipped = i64::try_from(norms.gt(1.0).sum(Kind::Int64)).unwrap();
    assert_eq!(clipped, 5);
    assert_same("norms", &norms, golden.get("right.norms"));
    assert_same("parameters", &state.flat, golden.get("right.parameters"));
    assert_same("first moment", &state.optim.first, golden.get("right.first"));
    assert_same("average", &state.average, golden.get("right.average"));
    // Entry by entry: the second moment reaches from 1 down to 1e-17.
    let second = golden.get("right.second");
    assert_same("second moment", &(&state.optim.second / second), &second.ones_like());
}

#[test]
fn twin_a_faulty_optimiser_is_told_apart() {
    let golden = Golden::open("optimiser");
    let (state, _) = ten_steps(&golden);
    for mistake in ["coupled_decay", "no_clip", "eps_inside_root"] {
        assert!(clearly_differ(&state.flat, golden.get(&format!("{mistake}.parameters"))), "{mistake}");
        assert!(clearly_differ(&state.average, golden.get(&format!("{mistake}.average"))), "{mistake}");
    }
    assert!(clearly_differ(&state.average, golden.get("decay_0.999.average")));
    assert_same("parameters", &state.flat, golden.get("decay_0.999.parameters"));
    // The moments know of the clipping and of coupled decay.
    for mistake in ["coupled_decay", "no_clip"] {
        assert!(clearly_differ(&state.optim.first, golden.get(&format!("{mistake}.first"))), "{mistake}");
    }
}

const MODEL: ModelConfig = ModelConfig { depth: 2, width: 8, heads: 2, mlp: 12, patch: 2 };
const INPUT: Input = Input { channels: 1, side: 4 };

/// `gen.py`'s objective `name`.
fn config(name: &str) -> TrainConfig {
    let objective = name.split('.').next().unwrap();
    let mut config: TrainConfig = serde_json::from_value(json!({
        "model": MODEL, "objective": objective, "t_min": 0.1,
        "contrast": ContrastConfig { lambda: 0.7, ..PLAIN },
        "reduction": "mean", "precision": "fp32", "seed": 0, "batch": 6, "epochs": 1, "flip": false,
        "optim": OPTIM, "ema": {"decay": DECAY, "ramp": false}
    }))
    .unwrap();
    if name == "lcf.algorithm1_l2" {
        let reading = config.contrast.as_mut().unwrap();
        (reading.denominator, reading.norm) = (Denominator::Algorithm1, Norm::L2);
    }
    config.resolved()
}

const OBJECTIVES: [&str; 5] = ["fm", "fm_truncated", "lcf", "fm_contrastive", "lcf.algorithm1_l2"];

/// The tiny model of `gen.py` and its batches.
struct Tiny {
    golden: Golden,
    layout: Layout,
    /// Its parameters at the start.
    start: Vec<Tensor>,
}

impl Tiny {
    fn new() -> Self {
        let (golden, layout) = (Golden::open("training"), Layout::new(&MODEL, &INPUT));
        let start = layout.specs.iter().map(|spec| golden.get(&format!("start.{}", spec.name)).copy()).collect();
        Self { golden, layout, start }
    }

    fn batch(&self, step: i64) -> Batch {
        let at = |name: &str| self.golden.get(name).get(step);
        Batch { x0: at("in.x0"), eps: at("in.noise"), t: self.golden.get("in.t").copy(), low: 2 }
    }

    /// The loss of batch `step` at `parameters`, and its gradients in the order of the layout.
    fn gradients(&self, config: &TrainConfig, step: i64, parameters: &[Tensor]) -> (Tensor, Vec<Tensor>) {
        let names: Vec<&str> = self.layout.specs.iter().map(|spec| spec.name.as_str()).collect();
        let leaves: Vec<Tensor> = parameters.iter().map(leaf).collect();
        let tensors = leaves.iter().map(Tensor::shallow_clone).collect();
        let dit = Dit::new(MODEL, INPUT, Precision::Fp32, &names, tensors);
        let loss = losses(&dit, &self.batch(step), config).total;
        loss.backward();
        (loss.detach(), leaves.iter().map(gradient).collect())
    }

    /// What is stored of the first batch's gradients in the objective of `prefix`, beside ours: all but the largest.
    fn pairs<'a>(&'a self, ours: &'a [Tensor], prefix: &'a str) -> Vec<(&'a str, &'a Tensor, &'a Tensor)> {
        let of = |name: &str| self.layout.specs.iter().position(|spec| spec.name == name).expect("a parameter");
        let pairs: Vec<_> = self.golden.under(prefix).map(|(name, golden)| (name, &ours[of(name)], golden)).collect();
        assert_eq!(pairs.len(), self.layout.specs.len() - 1);
        pairs
    }
}

#[test]
fn the_whole_loss_and_its_gradients_by_name_in_every_objective() {
    let tiny = Tiny::new();
    for objective in OBJECTIVES {
        let (loss, gradients) = tiny.gradients(&config(objective), 0, &tiny.start);
        assert_same(objective, &loss, tiny.golden.get(&format!("{objective}.loss")));
        for (name, ours, golden) in tiny.pairs(&gradients, &format!("{objective}.grad.")) {
            assert_same(&format!("{objective}, {name}"), ours, golden);
        }
    }
}

#[test]
fn twin_no_objective_passes_for_another() {
    let tiny = Tiny::new();
    for objective in OBJECTIVES {
        let (loss, gradients) = tiny.gradients(&config(objective), 0, &tiny.start);
        for other in OBJECTIVES.into_iter().filter(|other| *other != objective) {
            assert!(clearly_differ(&loss, tiny.golden.get(&format!("{other}.loss"))), "{objective}, {other}");
            let differ = |(_, ours, golden): &(&str, &Tensor, &Tensor)| clearly_differ(ours, golden);
            assert!(tiny.pairs(&gradients, &format!("{other}.grad.")).iter().any(differ), "{objective}, {other}");
        }
    }
}

/// Ten steps of LCF: the loss and the norm of the gradient at each, and where they end.
fn train(tiny: &Tiny) -> (Tensor, Tensor, State) {
    let mut state = State::new(&tiny.layout.flatten(&tiny.start));
    let config = config("lcf");
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for (step, rate) in rates(tiny.golden.get("in.rates")).into_iter().enumerate() {
        let (loss, gradients) = tiny.gradients(&config, step as i64, &tiny.layout.views(&state.flat));
        losses.push(loss);
        norms.push(state.step(&tiny.layout.flatten(&gradients), rate));
    }
    (Tensor::stack(&losses, 0), Tensor::stack(&norms, 0), state)
}

/// A parameter without the bias of keys. Softmax does not see that bias, so that its gradient is rounding alone, and Adam
/// makes steps of full length from it.
fn without_key_bias(name: &str, tensor: &Tensor) -> Tensor {
    if !name.ends_with("qkv.bias") {
        return tensor.shallow_clone();
    }
    let parts = tensor.view([3, -1]);
    Tensor::cat(&[parts.get(0), parts.get(2)], 0)
}

#[test]
fn ten_steps_of_training_a_whole_model() {
    let tiny = Tiny::new();
    let (losses, norms, state) = train(&tiny);
    assert_eq!(losses.size(), [10]);
    assert_same("losses", &losses, tiny.golden.get("right.losses"));
    assert_same("norms", &norms, tiny.golden.get("right.norms"));
    for (what, flat) in [("parameters", &state.flat), ("average", &state.average)] {
        for (spec, ours) in tiny.layout.specs.iter().zip(tiny.layout.views(flat)) {
            let name = format!("right.{what}.{}", spec.name);
            let golden = tiny.golden.get(&name);
            assert_same(&name, &without_key_bias(&name, &ours), &without_key_bias(&name, golden));
            let start = tiny.golden.get(&format!("start.{}", spec.name));
            assert!(clearly_differ(start, golden), "{name} was trained");
        }
    }
}

#[test]
fn twin_training_with_a_faulty_optimiser_is_told_apart() {
    let tiny = Tiny::new();
    let (losses, _, _) = train(&tiny);
    for mistake in ["coupled_decay", "no_clip"] {
        let wrong = tiny.golden.get(&format!("{mistake}.losses"));
        assert!(clearly_differ(&losses, wrong), "{mistake}");
        // The first loss is that of the start.
        assert_same(mistake, &losses.get(0), &wrong.get(0));
    }
}
