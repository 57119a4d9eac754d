//! In which ways a replica may be divided over the GPUs of one host.

use super::{Engine, EngineError};
use crate::model::ModelFacts;
use crate::spec::{DeviceKind, Parallel, ParallelShape, ServiceSpec};

/// The shapes that a replica may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shapes {
    /// To be tried in this order.
    pub good: Vec<ParallelShape>,
    /// Those that the engine would not start with, and why.
    pub refused: Vec<(ParallelShape, EngineError)>,
}

/// The shapes to try, and those that the engine refuses of what is known of the model.
pub fn shapes(engine: &dyn Engine, spec: &ServiceSpec, facts: Option<&ModelFacts>) -> Shapes {
    let mut found = Shapes::default();
    for shape in engine.shapes(spec, facts) {
        match facts.and_then(|facts| engine.refuses(spec, facts, shape)) {
            Some(why) => found.refused.push((shape, why)),
            None => found.good.push(shape),
        }
    }
    found
}

/// The spec's shapes, or 1, 2, 4 and 8 devices as far as `good` allows. Never empty.
pub(super) fn shapes_where(spec: &ServiceSpec, good: impl Fn(u32) -> bool) -> Vec<ParallelShape> {
    match (&spec.parallel, spec.device) {
        (Parallel::Shape(_) | Parallel::OneOf(_), _) => spec.parallel.shapes().to_vec(),
        (Parallel::Auto, DeviceKind::Cpu) => vec![ParallelShape::of_tensor(1)],
        (Parallel::Auto, DeviceKind::Gpu) => {
            let fits = [1, 2, 4, 8].into_iter().filter(|n| *n == 1 || good(*n));
            fits.map(ParallelShape::of_tensor).collect()
        }
    }
}

/// Refuses shapes of the spec that the engine never can, as `cannot` says, and CPU ranks on many devices.
pub(super) fn check_shapes(
    name: &'static str,
    spec: &ServiceSpec,
    cannot: impl Fn(ParallelShape) -> Option<EngineError>,
) -> Result<(), EngineError> {
    for shape in spec.parallel.shapes() {
        if spec.device == DeviceKind::Cpu && shape.devices() > 1 {
            let what = match shape.groups() {
                1 => format!("tensor parallelism ({})", shape.tensor),
                _ => format!("the shape {shape}"),
            };
            return Err(EngineError::Unsupported {
                engine: name,
                what: format!("{what} on host memory"),
                hint: "remove `parallel` from the spec".to_owned(),
            });
        }
        if let Some(error) = cannot(*shape) {
            return Err(error);
        }
    }
    Ok(())
}

/// Why the model cannot be divided in any way that the spec allows; none: in one of them, or nothing is asked for.
pub(super) fn none_suits(
    engine: &dyn Engine,
    spec: &ServiceSpec,
    facts: &ModelFacts,
) -> Option<EngineError> {
    let mut first = None;
    for shape in spec.parallel.shapes() {
        let why = engine.refuses(spec, facts, *shape)?;
        first.get_or_insert(why);
    }
    first
}

/// What llama.cpp cannot: it gives each GPU whole layers, and has one copy of them.
pub(super) fn whole_layers_only(name: &'static str, shape: ParallelShape) -> Option<EngineError> {
    let unsupported = |what, hint| Some(EngineError::Unsupported { engine: name, what, hint });
    if shape.pipeline.get() > 1 {
        let gpus = u64::from(shape.tensor.get()).saturating_mul(shape.pipeline.get().into());
        return unsupported(
            format!("pipeline parallelism ({}) with llama.cpp", shape.pipeline),
            format!("use {{ tensor = {gpus} }}: each of its GPUs gets whole layers anyway"),
        );
    }
    if shape.data.get() > 1 {
        return unsupported(
            format!("data parallelism ({}) inside a replica with llama.cpp", shape.data),
            "raise `replicas` instead".to_owned(),
        );
    }
    None
}
