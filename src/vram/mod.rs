//! STAND-IN until the real one is merged: the types that the API reads.

#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub device: String,
    pub total_bytes: u64,
    pub used_bytes: u64,
    pub worker_resident_bytes: u64,
    pub models: Vec<ResidentModel>,
    pub gpus: Vec<GpuInfo>,
}

#[derive(Debug, Clone)]
pub struct ResidentModel {
    pub mode: String,
    pub model: String,
    pub bytes: u64,
    pub loras: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct GpuInfo {
    pub index: u32,
    pub name: String,
    pub total_bytes: u64,
    pub used_bytes: u64,
}
