//! GPUs on the node: whose they are.

use super::*;
use crate::resources::{Capacity, Lack, Resources};

#[test]
fn a_gpu_is_one_tasks_until_nothing_of_it_is_left() {
    let mut resources = Resources::new(Capacity {
        cpu_units: 1024,
        memory_bytes: 1024 * MIB,
        ..Capacity::default()
    });
    let with = |n: u64, gpu: &str| {
        let mut spec = task(n, 1, vec![container(n, "main")]);
        spec.containers[0].gpus = vec![gpu.parse().unwrap()];
        spec
    };
    let (first, second, other) = (with(1, "v/gpu=0"), with(2, "v/gpu=0"), with(3, "v/gpu=1"));
    resources.charge(&first);
    let held = Lack::Now(format!("RESOURCE:GPU: v/gpu=0 is held by task {}", first.id));
    assert_eq!(resources.fits(&second), Err(held.clone()));
    assert_eq!(resources.fits(&other), Ok(()));
    assert!(resources.release_processes(&first.id));
    assert_eq!(resources.fits(&second), Err(held));
    assert!(resources.release_all(&first.id));
    assert_eq!(resources.fits(&second), Ok(()));
    assert!(!resources.release_all(&first.id));
}
