//! Tells the binary where libtorch is, if it is built with it; else there is nothing to do.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // From the crate `torch-sys`, which was told by LIBTORCH.
    if let Ok(folder) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    }
}
