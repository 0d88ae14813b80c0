//! Generates `runtime.v1` from `cri/v1/*.proto`: protox compiles the files (no system `protoc`),
//! tonic and prost generate from its descriptors, and the same descriptors are kept for the crate.

use std::path::Path;
use std::{env, error, fs};

use prost::Message as _;

const ROOTS: [&str; 2] = ["cri/v1/runtime_service.proto", "cri/v1/image_service.proto"];

/// Messages that hold secrets: their `Debug` is written by hand in `src/redact.rs`.
const SECRET: [&str; 2] = [".runtime.v1.AuthConfig", ".runtime.v1.KeyValue"];

fn main() -> Result<(), Box<dyn error::Error>> {
    println!("cargo:rerun-if-changed=cri");
    let descriptors = protox::compile(ROOTS, ["."])?;
    let out = env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    fs::write(
        Path::new(&out).join("descriptors.bin"),
        descriptors.encode_to_vec(),
    )?;
    tonic_prost_build::configure()
        // Sorted maps: equal messages encode to equal bytes.
        .btree_map(".")
        .skip_debug(SECRET)
        .compile_fds(descriptors)?;
    Ok(())
}
