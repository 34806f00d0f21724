//! Candle's devices, each opened once: what was made on one opening does not go with another's.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use candle_core::{DType, Device};

use super::Place;
use crate::engine::backend::{Candle, CandleDevice, Float};

/// Opens a device, or says in a word why not.
pub fn open(device: CandleDevice) -> Result<Device, String> {
    static OPENED: Mutex<BTreeMap<CandleDevice, Device>> = Mutex::new(BTreeMap::new());
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = opened.get(&device) {
        return Ok(device.clone());
    }
    let new = match device {
        CandleDevice::Cpu => Ok(Device::Cpu),
        CandleDevice::Cuda(card) => Device::new_cuda(card as usize),
        CandleDevice::Metal => Device::new_metal(0),
    };
    let first_line = |text: String| text.lines().next().unwrap_or_default().to_owned();
    let new = new.map_err(|error| first_line(error.to_string()))?;
    opened.insert(device, new.clone());
    Ok(new)
}

impl Place {
    /// Where a component's layers are.
    pub fn of(candle: Candle, component: &str) -> Result<Self, String> {
        let dtype = match candle.floats.of(component) {
            Float::Fp32 => DType::F32,
            Float::Bf16 => DType::BF16,
            Float::Fp16 => DType::F16,
        };
        Ok(Self { device: open(candle.device)?, dtype })
    }
}
