//! What a picture shows, measured: the object before the background, its colour and its shape.

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;

/// How far a pixel's colour must be from the background's, in CIE Lab.
const DIFFERENT: f32 = 16.0;
/// The part of the picture that an object takes.
const OBJECT_AREA: std::ops::Range<f32> = 0.01..0.5;
/// Intersection over union of an outline with the shape that it is most like.
const MIN_LIKENESS: f32 = 0.7;
const GRID: usize = 32;

/// What the pictures are measured by, written by `tools/demo_model/expectations.py`.
#[derive(Deserialize)]
pub struct Expected {
    pub prompts: Vec<Asked>,
    /// Colour and shape of each tile of `drawn.png`, row after row.
    pub tiles: Vec<(String, String)>,
    /// By name, sRGB.
    pub colours: BTreeMap<String, [u8; 3]>,
    /// By name, what is inside of the outline on a grid over its bounding box.
    pub shapes: BTreeMap<String, Vec<String>>,
}

/// A prompt that training never saw in this combination.
#[derive(Deserialize)]
pub struct Asked {
    pub prompt: String,
    pub colour: String,
    pub shape: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    pub colour: String,
    pub shape: String,
}

pub struct Picture<'a> {
    pub rgb: &'a [u8],
    pub width: usize,
}

/// A region before the background.
pub struct Object {
    /// For each pixel of the picture, whether it is inside of the outline.
    inside: Vec<bool>,
    /// For each pixel of the picture, whether it differs from the background.
    painted: Vec<bool>,
    width: usize,
    lab: [f32; 3],
}

impl Expected {
    pub fn load() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/demo/expected.json");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    /// The colour and the shape of what is before the background, if anything is.
    pub fn see(&self, picture: &Picture<'_>) -> Option<Seen> {
        let object = Object::of(picture)?;
        let colour = |rgb: &[u8; 3]| distance(object.lab, lab(*rgb));
        let colour = self.colours.iter().min_by(|a, b| colour(a.1).total_cmp(&colour(b.1)))?;
        let outline = object.on_grid();
        let likeness = |rows: &Vec<String>| likeness(&outline, rows);
        let shapes = self.shapes.iter().map(|(name, rows)| (likeness(rows), name));
        let (likeness, shape) = shapes.max_by(|a, b| a.0.total_cmp(&b.0))?;
        (likeness >= MIN_LIKENESS).then(|| Seen { colour: colour.0.clone(), shape: shape.clone() })
    }
}

impl Object {
    /// The largest connected region that differs from the picture's edge.
    pub fn of(picture: &Picture<'_>) -> Option<Self> {
        let width = picture.width;
        let pixels: Vec<[f32; 3]> = picture.rgb.as_chunks().0.iter().map(|rgb| lab(*rgb)).collect();
        let height = pixels.len() / width;
        let is_edge = |i: usize| {
            let (x, y) = (i % width, i / width);
            x < 2 || y < 2 || x + 2 >= width || y + 2 >= height
        };
        let background = median((0..pixels.len()).filter(|i| is_edge(*i)).map(|i| pixels[i]));
        let painted: Vec<bool> =
            pixels.iter().map(|pixel| distance(*pixel, background) > DIFFERENT).collect();
        let painted = largest_region(&painted, width);
        let inside = without_holes(&painted, width);
        let area = inside.iter().filter(|inside| **inside).count() as f32 / inside.len() as f32;
        // Not its rim, where the background shines through.
        let core = |i: &usize| neighbours(*i, width, pixels.len()).all(|n| painted[n]);
        let painted_pixels = || (0..pixels.len()).filter(|i| painted[*i]);
        let has_core = painted_pixels().any(|i| core(&i));
        let core = painted_pixels().filter(|i| !has_core || core(i)).map(|i| pixels[i]);
        let lab = median(core);
        OBJECT_AREA.contains(&area).then_some(Self { inside, painted, width, lab })
    }

    /// The part of what is inside of the outline that is not as the background.
    pub fn filled(&self) -> f32 {
        let count = |mask: &[bool]| mask.iter().filter(|set| **set).count() as f32;
        count(&self.painted) / count(&self.inside)
    }

    fn on_grid(&self) -> Vec<bool> {
        let points = || (0..self.inside.len()).filter(|i| self.inside[*i]);
        let (xs, ys) = (|| points().map(|i| i % self.width), || points().map(|i| i / self.width));
        let (left, top) = (xs().min().unwrap_or(0), ys().min().unwrap_or(0));
        let across = xs().max().unwrap_or(0) + 1 - left;
        let down = ys().max().unwrap_or(0) + 1 - top;
        let at = |cell: usize, length: usize| (2 * cell + 1) * length / (2 * GRID);
        (0..GRID * GRID)
            .map(|i| {
                let (x, y) = (left + at(i % GRID, across), top + at(i / GRID, down));
                self.inside[y * self.width + x]
            })
            .collect()
    }
}

/// Intersection over union.
fn likeness(outline: &[bool], rows: &[String]) -> f32 {
    let shape = rows.iter().flat_map(|row| row.bytes()).map(|c| c == b'#');
    let pairs: Vec<_> = outline.iter().copied().zip(shape).collect();
    let count = |f: fn(&(bool, bool)) -> bool| pairs.iter().filter(|pair| f(pair)).count() as f32;
    count(|(a, b)| *a && *b) / count(|(a, b)| *a || *b)
}

fn neighbours(i: usize, width: usize, len: usize) -> impl Iterator<Item = usize> {
    let x = i % width;
    let left = (x > 0).then(|| i - 1);
    let right = (x + 1 < width).then(|| i + 1);
    [left, right, i.checked_sub(width), Some(i + width).filter(|n| *n < len)].into_iter().flatten()
}

fn region(mask: &[bool], width: usize, first: impl IntoIterator<Item = usize>) -> Vec<bool> {
    let mut found = vec![false; mask.len()];
    let mut open: Vec<usize> = first.into_iter().filter(|i| mask[*i]).collect();
    while let Some(i) = open.pop() {
        if !std::mem::replace(&mut found[i], true) {
            open.extend(neighbours(i, width, mask.len()).filter(|n| mask[*n] && !found[*n]));
        }
    }
    found
}

fn largest_region(mask: &[bool], width: usize) -> Vec<bool> {
    let (mut left, mut best, mut most) = (mask.to_vec(), vec![false; mask.len()], 0);
    while let Some(first) = left.iter().position(|set| *set) {
        let found = region(&left, width, [first]);
        let size = found.iter().filter(|set| **set).count();
        left.iter_mut().zip(&found).for_each(|(left, found)| *left &= !found);
        if size > most {
            (best, most) = (found, size);
        }
    }
    best
}

/// All that cannot be reached from the picture's edge.
fn without_holes(mask: &[bool], width: usize) -> Vec<bool> {
    let free: Vec<bool> = mask.iter().map(|set| !set).collect();
    let height = mask.len() / width;
    let edge = (0..mask.len()).filter(|i| {
        i % width == 0 || i % width == width - 1 || i / width == 0 || i / width == height - 1
    });
    region(&free, width, edge).into_iter().map(|outside| !outside).collect()
}

/// Of each component by itself.
fn median(colours: impl Iterator<Item = [f32; 3]>) -> [f32; 3] {
    let colours: Vec<_> = colours.collect();
    [0, 1, 2].map(|component| {
        let mut values: Vec<f32> = colours.iter().map(|colour| colour[component]).collect();
        values.sort_by(f32::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(0.0)
    })
}

fn distance(a: [f32; 3], b: [f32; 3]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt()
}

/// CIE Lab (1976, D65) of sRGB.
fn lab(rgb: [u8; 3]) -> [f32; 3] {
    let [r, g, b] = rgb.map(|c| {
        let c = f32::from(c) / 255.0;
        if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
    });
    let [x, y, z] = [
        (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505,
        0.2126 * r + 0.7152 * g + 0.0722 * b,
        (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089,
    ]
    .map(|t| if t > 0.008_856 { t.cbrt() } else { 7.787 * t + 16.0 / 116.0 });
    [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
}
