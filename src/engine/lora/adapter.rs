//! What a LoRA has for one module: which tensors, by which algorithm, and whether they fit
//! together and to the module. Decided by names and shapes alone; numbers are read when it is merged.

use std::collections::BTreeMap;

use super::{
    Fault,
    algorithm::{Algorithm, Factor, Made, Pair, Tensor, malformed, product},
    delta::{self, Axis, Delta},
    keys::Part,
};

/// The tensors of one module.
pub type Group = BTreeMap<Part, Tensor>;

/// What the whole is multiplied with, besides the strength.
#[derive(Debug, Clone, PartialEq)]
enum Scale {
    Known(f32),
    /// The number in the tensor, divided by the rank.
    Alpha {
        tensor: Tensor,
        rank: usize,
    },
}

/// All that a LoRA has for one module.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    weight: Option<Algorithm>,
    scale: Scale,
    /// DoRA's magnitudes.
    magnitude: Option<(Part, Tensor)>,
    /// What is added to the bias, and whether the scale applies to it.
    bias: Option<(Tensor, bool)>,
}

impl Adapter {
    /// Takes a module's tensors for what they are. `scale` is what the file's metadata says of
    /// this module, of the given rank, if anything.
    ///
    /// # Errors
    /// Parts that are missing or do not fit together, by their names.
    pub fn of(group: Group, scale: impl FnOnce(usize) -> Option<f32>) -> Result<Self, Fault> {
        let mut parts = Parts(group);
        let (alpha, magnitude) = (parts.take(Part::Alpha), parts.take_magnitude());
        let full_bias = parts.take(Part::FullBias).map(|tensor| (tensor, false));
        let bias = full_bias.or_else(|| parts.take(Part::UpBias).map(|tensor| (tensor, true)));
        let weight = parts.take_algorithm()?;
        parts.expect_none_left()?;
        if let (None, Some(lost)) = (&weight, magnitude.as_ref().map(|(_, tensor)| tensor)) {
            return Err(malformed(
                lost,
                "has no weights beside it that it could be the magnitude of",
            ));
        }
        weight.as_ref().map(Algorithm::made).transpose()?;
        let rank = weight.as_ref().and_then(Algorithm::rank);
        let scale = match (alpha, rank) {
            (Some(tensor), _) if tensor.count() != 1 => {
                return Err(malformed(&tensor, "must be a single number"));
            }
            (Some(tensor), Some(rank)) => Scale::Alpha { tensor, rank },
            (None, Some(rank)) => Scale::Known(scale(rank).unwrap_or(1.0)),
            (_, None) => Scale::Known(1.0),
        };
        Ok(Self { weight, scale, magnitude, bias })
    }

    /// Whether it can be added to a weight of these dimensions; otherwise the dimensions that it
    /// is made for.
    pub fn fits(&self, dims: &[usize]) -> Result<(), Vec<usize>> {
        let Some((&n, inputs)) = dims.split_first() else { return Err(Vec::new()) };
        if let Some((tensor, _)) = &self.bias
            && tensor.count() != n
        {
            return Err(tensor.dims.clone());
        }
        let Some(made) = self.made() else { return Ok(()) };
        let as_many = product(&made.inputs) == product(inputs) && product(inputs).is_some();
        let kernels_agree = made.inputs.len() == 1 || inputs.len() == 1 || made.inputs == inputs;
        if made.n != n || !as_many || !kernels_agree {
            return Err([&[made.n], made.inputs.as_slice()].concat());
        }
        match &self.magnitude {
            Some((part, tensor)) if axis(*part, tensor, dims).is_none() => Err(tensor.dims.clone()),
            _ => Ok(()),
        }
    }

    /// How wide its input is, if it changes a weight.
    pub fn input_width(&self) -> Option<usize> {
        self.made().map(|made| made.inputs[0])
    }

    /// Adds it to a weight of dimensions that it fits. `read` gives a tensor's numbers.
    pub fn add_to_weight(
        &self,
        weight: &mut [f32],
        dims: &[usize],
        strength: f32,
        read: &dyn Fn(&str) -> Vec<f32>,
    ) {
        let Some(algorithm) = &self.weight else { return };
        let (delta, scale) = (algorithm.read(read), self.scale(read));
        let magnitude = self
            .magnitude
            .as_ref()
            .and_then(|(part, tensor)| Some((axis(*part, tensor, dims)?, read(&tensor.name))));
        let Some((axis, magnitudes)) = magnitude else {
            return delta.add_to(weight, strength * scale);
        };
        // A weight is decomposed with all of its delta; the strength says how far to go there
        // (LyCORIS' `apply_dora_scale`).
        let base = (strength != 1.0).then(|| weight.to_vec());
        delta.add_to(weight, scale);
        delta::set_magnitudes(weight, dims[0], axis, &magnitudes);
        if let Some(base) = base {
            delta::interpolate(weight, &base, strength);
        }
    }

    /// Floats that [`Self::add_to_weight`] takes, at most.
    pub fn working_floats(&self, dims: &[usize], strength: f32) -> usize {
        let Some(algorithm) = &self.weight else { return 0 };
        let weight: usize = dims.iter().product();
        let k = weight / dims.first().copied().unwrap_or(1).max(1);
        let base = if strength == 1.0 { 0 } else { weight };
        // The sums of squares are f64, and of each chunk of rows first.
        let sums = 2 * (k + weight.div_ceil(delta::CHUNK_ROWS) + k);
        let dora =
            self.magnitude.as_ref().map_or(0, |(_, tensor)| tensor.count() + k + base + sums);
        algorithm.working_floats(k) + dora
    }

    /// Adds it to a bias.
    pub fn add_to_bias(&self, bias: &mut [f32], strength: f32, read: &dyn Fn(&str) -> Vec<f32>) {
        let Some((tensor, scaled)) = &self.bias else { return };
        let scale = if *scaled { strength * self.scale(read) } else { strength };
        Delta::Full(read(&tensor.name)).add_to(bias, scale);
    }

    pub fn changes_weight(&self) -> bool {
        self.weight.is_some()
    }

    pub fn changes_bias(&self) -> bool {
        self.bias.is_some()
    }

    fn scale(&self, read: &dyn Fn(&str) -> Vec<f32>) -> f32 {
        match &self.scale {
            Scale::Known(scale) => *scale,
            Scale::Alpha { tensor, rank } => read(&tensor.name)[0] / *rank as f32,
        }
    }

    /// What it makes of a weight, if anything. (That its parts fit together was seen in `of`.)
    fn made(&self) -> Option<Made> {
        self.weight.as_ref()?.made().ok()
    }
}

/// Of what a module's magnitudes are the norms; `None` if they fit neither way.
fn axis(part: Part, tensor: &Tensor, dims: &[usize]) -> Option<Axis> {
    let [n, channels, kernel @ ..] = dims else { return None };
    let lies_along =
        |axis: usize| tensor.dims.iter().enumerate().all(|(i, size)| i == axis || *size == 1);
    // PEFT's are always the outputs', though those of convolutions are stored as [1, n, 1, 1].
    if tensor.count() == *n && (part == Part::Magnitude || lies_along(0)) {
        Some(Axis::Output)
    } else if part == Part::DoraScale && tensor.count() == *channels && lies_along(1) {
        Some(Axis::Input { taps: kernel.iter().product() })
    } else {
        None
    }
}

/// A module's tensors that nothing has been made of yet.
struct Parts(Group);

impl Parts {
    fn take(&mut self, part: Part) -> Option<Tensor> {
        self.0.remove(&part)
    }

    fn take_magnitude(&mut self) -> Option<(Part, Tensor)> {
        [Part::Magnitude, Part::DoraScale]
            .into_iter()
            .find_map(|part| Some((part, self.take(part)?)))
    }

    /// The one algorithm that there is a tensor of. A second one is left over.
    fn take_algorithm(&mut self) -> Result<Option<Algorithm>, Fault> {
        if let Some(pair) = self.take_pair(Part::Up, Some(Part::Core), Part::Down)? {
            return Ok(Some(Algorithm::LowRank(pair)));
        }
        let core = Some(Part::Hada1Core);
        if let Some(first) = self.take_pair(Part::Hada1Up, core, Part::Hada1Down)? {
            let core = Some(Part::Hada2Core);
            let second = self.take_pair(Part::Hada2Up, core, Part::Hada2Down)?;
            let second = second.ok_or_else(|| malformed(&first.up, "lacks its hada_w2_a"))?;
            return Ok(Some(Algorithm::Hadamard(first.in_columns(), second.in_columns())));
        }
        // LyCORIS decomposes the first one without a core.
        let first = self.take_factor(Part::Kron1, Part::Kron1Up, None, Part::Kron1Down)?;
        if let Some(first) = first {
            let core = Some(Part::Kron2Core);
            let second = self.take_factor(Part::Kron2, Part::Kron2Up, core, Part::Kron2Down)?;
            let second = second.ok_or_else(|| malformed(first.tensor(), "lacks its lokr_w2"))?;
            return Ok(Some(Algorithm::Kronecker(first, second)));
        }
        Ok(self.take(Part::Full).map(Algorithm::Full))
    }

    fn take_factor(
        &mut self,
        whole: Part,
        up: Part,
        core: Option<Part>,
        down: Part,
    ) -> Result<Option<Factor>, Fault> {
        if let Some(tensor) = self.take(whole) {
            return Ok(Some(Factor::Whole(tensor)));
        }
        Ok(self.take_pair(up, core, down)?.map(Pair::in_columns).map(Factor::Pair))
    }

    fn take_pair(
        &mut self,
        up: Part,
        core: Option<Part>,
        down: Part,
    ) -> Result<Option<Pair>, Fault> {
        match (self.take(up), self.take(down)) {
            (Some(up), Some(down)) => {
                let core = core.and_then(|core| self.take(core));
                Ok(Some(Pair::new(up, core, down)))
            }
            (Some(lonely), None) | (None, Some(lonely)) => {
                Err(malformed(&lonely, "lacks the other half of its product"))
            }
            (None, None) => Ok(None),
        }
    }

    fn expect_none_left(&self) -> Result<(), Fault> {
        match self.0.values().next() {
            None => Ok(()),
            Some(tensor) => Err(malformed(tensor, "does not belong to the others of its module")),
        }
    }
}
