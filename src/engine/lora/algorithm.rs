//! The algorithms by which a LoRA writes a matrix down: which tensors make it, what size it comes
//! to, and whether that can be. Shapes alone; numbers are read when it is merged.

use super::{
    Fault,
    delta::{self, Delta, Matrix, Product},
};

/// A tensor of the file: its name and dimensions, of which none is 0 and whose product is a number.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    pub name: String,
    pub dims: Vec<usize>,
}

impl Tensor {
    /// The first dimension, and all that follow as one; `None` if that is no matrix.
    fn matrix(&self) -> Option<(usize, usize)> {
        let (first, rest) = self.dims.split_first()?;
        (!rest.is_empty()).then(|| (*first, rest.iter().product()))
    }

    pub fn count(&self) -> usize {
        self.dims.iter().product()
    }
}

/// `up · down`, or with a core between.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    pub up: Tensor,
    core: Option<Tensor>,
    down: Tensor,
    /// LoHa and LoKr store `up` as columns where there is a core.
    up_in_columns: bool,
}

/// One side of a Kronecker product.
#[derive(Debug, Clone, PartialEq)]
pub enum Factor {
    Whole(Tensor),
    Pair(Pair),
}

/// How a module's difference is written down; [`Delta`] is the same in numbers.
#[derive(Debug, Clone, PartialEq)]
pub enum Algorithm {
    /// LoRA, LoCon.
    LowRank(Pair),
    /// LoHa.
    Hadamard(Pair, Pair),
    /// LoKr.
    Kronecker(Factor, Factor),
    Full(Tensor),
}

/// The dimensions of what an adapter makes: outputs, and what each is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Made {
    pub n: usize,
    pub inputs: Vec<usize>,
}

impl Algorithm {
    /// What alpha is divided by.
    pub fn rank(&self) -> Option<usize> {
        match self {
            Self::LowRank(pair) | Self::Hadamard(pair, _) => Some(pair.rank()),
            Self::Kronecker(first, second) => second.rank().or_else(|| first.rank()),
            Self::Full(_) => None,
        }
    }

    /// The size of the matrix.
    ///
    /// # Errors
    /// Its tensors do not fit together, or it would be too large to count.
    pub fn made(&self) -> Result<Made, Fault> {
        match self {
            Self::LowRank(pair) => pair.made(),
            Self::Hadamard(first, second) => {
                let (made, other) = (first.made()?, second.made()?);
                if made != other {
                    return Err(malformed(&second.up, "and its like make matrices of two sizes"));
                }
                Ok(made)
            }
            Self::Kronecker(first, second) => {
                let (a, b) = (first.made()?, second.made()?);
                let largest = second.tensor();
                let times = |a: usize, b: usize| a.checked_mul(b).ok_or_else(|| too_large(largest));
                let (channels, kernel) = b.inputs.split_at(1);
                let width = a.inputs.iter().try_fold(channels[0], |x, y| times(x, *y))?;
                let inputs = [&[width], kernel].concat();
                let made = Made { n: times(a.n, b.n)?, inputs };
                made.count().ok_or_else(|| too_large(largest))?;
                Ok(made)
            }
            Self::Full(tensor) => match tensor.dims.split_first() {
                Some((n, inputs)) if matches!(inputs.len(), 1 | 3) => {
                    Ok(Made { n: *n, inputs: inputs.to_vec() })
                }
                _ => Err(malformed(tensor, "is neither a matrix nor a kernel")),
            },
        }
    }

    /// The numbers, of which `read` gives those of a tensor. Only where [`Self::made`] succeeds.
    pub fn read(&self, read: &dyn Fn(&str) -> Vec<f32>) -> Delta {
        match self {
            Self::LowRank(pair) => Delta::Product(pair.read(read)),
            Self::Hadamard(first, second) => Delta::Hadamard(first.read(read), second.read(read)),
            Self::Kronecker(first, second) => Delta::Kronecker(first.read(read), second.read(read)),
            Self::Full(tensor) => Delta::Full(read(&tensor.name)),
        }
    }
}

impl Algorithm {
    /// Floats that it takes, at most, to add it to a weight `[n, k]`: what is read, what is made
    /// of that, and what is multiplied at a time.
    pub fn working_floats(&self, k: usize) -> usize {
        match self {
            Self::LowRank(pair) => pair.working_floats(),
            Self::Hadamard(first, second) => {
                first.working_floats() + second.working_floats() + 2 * delta::CHUNK_ROWS * k
            }
            Self::Kronecker(first, second) => first.working_floats() + second.working_floats(),
            Self::Full(tensor) => tensor.count(),
        }
    }
}

impl Made {
    /// How many numbers that is, if it can be counted.
    fn count(&self) -> Option<usize> {
        product(&self.inputs)?.checked_mul(self.n)
    }
}

/// Of sizes that a file made up, perhaps.
pub fn product(sizes: &[usize]) -> Option<usize> {
    sizes.iter().try_fold(1usize, |product, size| product.checked_mul(*size))
}

impl Factor {
    pub fn rank(&self) -> Option<usize> {
        match self {
            Self::Whole(_) => None,
            Self::Pair(pair) => Some(pair.rank()),
        }
    }

    /// One that stands for it in messages.
    pub fn tensor(&self) -> &Tensor {
        match self {
            Self::Whole(tensor) => tensor,
            Self::Pair(pair) => &pair.down,
        }
    }

    pub fn made(&self) -> Result<Made, Fault> {
        match self {
            Self::Whole(tensor) => Algorithm::Full(tensor.clone()).made(),
            Self::Pair(pair) => pair.made(),
        }
    }

    fn working_floats(&self) -> usize {
        match self {
            Self::Whole(tensor) => tensor.count(),
            Self::Pair(pair) => {
                let made = pair.made().ok().and_then(|made| made.count()).unwrap_or(0);
                pair.working_floats() + made
            }
        }
    }

    fn read(&self, read: &dyn Fn(&str) -> Vec<f32>) -> Matrix {
        match self {
            Self::Whole(tensor) => {
                Matrix { numbers: read(&tensor.name), columns: tensor.dims[1..].iter().product() }
            }
            Self::Pair(pair) => pair.read(read).multiply(),
        }
    }
}

impl Pair {
    pub fn new(up: Tensor, core: Option<Tensor>, down: Tensor) -> Self {
        Self { up, core, down, up_in_columns: false }
    }

    /// As LoHa and LoKr have it.
    pub fn in_columns(self) -> Self {
        Self { up_in_columns: self.core.is_some(), ..self }
    }

    /// Of the part that reads the input.
    fn rank(&self) -> usize {
        self.down.dims[0]
    }

    pub fn made(&self) -> Result<Made, Fault> {
        let whole =
            |tensor: &Tensor| tensor.matrix().ok_or_else(|| malformed(tensor, "is not a matrix"));
        let ((up_first, up_rest), (rank, _)) = (whole(&self.up)?, whole(&self.down)?);
        let (n, up_rank) =
            if self.up_in_columns { (up_rest, up_first) } else { (up_first, up_rest) };
        let (inner, inputs) = match &self.core {
            None => (up_rank, self.down.dims[1..].to_vec()),
            Some(core) => {
                let [first, second, kernel @ ..] = core.dims.as_slice() else {
                    return Err(malformed(core, "is not a kernel"));
                };
                if *first != up_rank {
                    return Err(rank_error(core, &self.up));
                }
                let channels: usize = self.down.dims[1..].iter().product();
                (*second, [&[channels], kernel].concat())
            }
        };
        if inner != rank {
            return Err(rank_error(self.core.as_ref().unwrap_or(&self.up), &self.down));
        }
        let made = Made { n, inputs };
        made.count().ok_or_else(|| too_large(&self.down))?;
        Ok(made)
    }

    /// Both sides of the product; each a second time, as the product's kernel likes it.
    fn working_floats(&self) -> usize {
        let sides = self.up.count() + self.down.count();
        let Some(core) = &self.core else { return 2 * sides };
        // What the core makes of `down`: as many kernels a row, for each of its own outputs.
        let rows = core.dims[0].div_ceil(self.rank());
        let taps: usize = core.dims[2..].iter().product();
        core.count() + 2 * (sides + rows * taps * self.down.count())
    }

    fn read(&self, read: &dyn Fn(&str) -> Vec<f32>) -> Product {
        let mut up = read(&self.up.name);
        if self.up_in_columns {
            up = delta::transpose(&up, self.up.count() / self.up.dims[0]);
        }
        let (down, rank) = (read(&self.down.name), self.rank());
        match &self.core {
            None => Product { a: up, b: down, rank },
            Some(core) => {
                let numbers = read(&core.name);
                Product::with_core(up, &numbers, &down, core.dims[0], rank)
            }
        }
    }
}

pub fn malformed(tensor: &Tensor, what: &str) -> Fault {
    Fault::Malformed {
        tensor: tensor.name.clone(),
        dims: tensor.dims.clone(),
        what: what.to_owned(),
    }
}

fn rank_error(tensor: &Tensor, other: &Tensor) -> Fault {
    malformed(tensor, &format!("has another rank than '{}' {:?}", other.name, other.dims))
}

fn too_large(tensor: &Tensor) -> Fault {
    malformed(tensor, "and its like make a matrix that is too large")
}
