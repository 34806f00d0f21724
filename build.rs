//! With the feature `libtorch`: tells the program where the library is, and compiles the few lines of
//! C++ that it needs beyond the library's C interface. Else there is nothing to do.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "libtorch")]
    libtorch::build();
}

#[cfg(feature = "libtorch")]
mod libtorch {
    use std::{
        env,
        path::{Path, PathBuf},
    };

    const SHIM: &str = "src/engine/nn/torch/shim";

    pub fn build() {
        println!("cargo:rerun-if-changed={SHIM}");
        // From the crate `torch-sys`, which was told by LIBTORCH.
        let lib = env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys says where libtorch is");
        let lib = PathBuf::from(lib);
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
        compiler(&lib).file(format!("{SHIM}/host.cpp")).compile("diffused_host");
        let cuda = cuda_include(&lib).and_then(|include| cuda_shim(&lib, &include));
        println!("cargo:rustc-env=DIFFUSED_CUDA={}", cuda.unwrap_or_default().display());
    }

    fn compiler(lib: &Path) -> cc::Build {
        let include = lib.with_file_name("include");
        let mut compiler = cc::Build::new();
        compiler.cpp(true).std("c++17").warnings(false).opt_level(2);
        compiler.include(&include).include(include.join("torch/csrc/api/include"));
        compiler
    }

    /// CUDA's headers: in the toolkit, or among the packages that PyTorch brings along.
    fn cuda_include(lib: &Path) -> Option<PathBuf> {
        println!("cargo:rerun-if-env-changed=CUDA_HOME");
        let toolkit = env::var_os("CUDA_HOME").map(PathBuf::from);
        let toolkit = toolkit.unwrap_or_else(|| PathBuf::from("/usr/local/cuda"));
        let packages = lib.parent()?.parent()?.join("nvidia/cu13");
        let mut folders = [packages, toolkit].into_iter().map(|root| root.join("include"));
        folders.find(|folder| folder.join("cuda_runtime_api.h").exists())
    }

    /// A shared object of its own: linked to the program, it would need a card's libraries to start.
    fn cuda_shim(lib: &Path, include: &Path) -> Option<PathBuf> {
        if !lib.join("libtorch_cuda.so").exists() {
            return None;
        }
        let out = PathBuf::from(env::var_os("OUT_DIR")?).join("libdiffused_cuda.so");
        let mut command = compiler(lib).include(include).pic(true).get_compiler().to_command();
        command.arg("-shared").arg(format!("{SHIM}/cuda.cpp")).arg("-o").arg(&out);
        command.arg(format!("-L{}", lib.display())).arg(format!("-Wl,-rpath,{}", lib.display()));
        // Its other half is in the libraries that libtorch_cuda asks for.
        command.args(["-Wl,--no-as-needed", "-Wl,--allow-shlib-undefined"]);
        command.args(["-ltorch_cuda", "-lc10_cuda", "-ltorch_cpu", "-lc10"]);
        let runtime = include.with_file_name("lib").join("libcudart.so.13");
        if let (true, Some(folder)) = (runtime.exists(), runtime.parent()) {
            command.arg(format!("-Wl,-rpath,{}", folder.display())).arg(&runtime);
        }
        match command.status() {
            Ok(status) if status.success() => Some(out),
            _ => {
                println!(
                    "cargo:warning=the CUDA part was not compiled: CUDA graphs and the card's memory figures will be missing"
                );
                None
            }
        }
    }
}
