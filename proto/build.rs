//! Generates the node protocol. Needs `protoc`, as containerd-client's build does (`scripts/setup`).
fn main() -> Result<(), Box<dyn std::error::Error>> {
    tonic_prost_build::configure().compile_protos(&["berth/node/v1/node.proto"], &["."])?;
    Ok(())
}
