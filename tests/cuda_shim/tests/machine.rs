//! The emulator notices what a kernel must not do.

mod common;

use common::{Arg, Buffer, run_on};
use yuan_cuda::Launch;
use yuan_cuda_shim::Architecture;

fn fault(kernel: &'static str, x: &Buffer<i32>, n: Option<usize>) -> Result<(), String> {
    let launch = Launch { kernel, grid: [1, 1, 1], block: [256, 1, 1], shared: 0 };
    let mut args: Vec<&dyn Arg> = vec![x];
    args.extend(n.as_ref().map(|n| n as &dyn Arg));
    run_on(Architecture::Faults, Some(launch), &args)
}

#[track_caller]
fn assert_says(result: Result<(), String>, words: &[&str]) {
    let text = result.expect_err("a fault");
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
}

#[test]
fn a_kernel_that_does_no_wrong_runs() {
    let x = Buffer::fresh(256);
    assert_eq!(fault("fault_none", &x, None), Ok(()));
    assert_eq!(x.get(), (0..256).collect::<Vec<i32>>());
}

#[test]
fn an_access_outside_the_memory_names_kernel_thread_and_address() {
    let x = Buffer::<i32>::zeroed(256);
    let address = format!("{:#x}", x.address() + 4 * 256);
    let thread = "thread (5, 0, 0)";
    assert_says(
        fault("fault_store", &x, Some(256)),
        &["fault_store", thread, "out of bounds: a store", &address],
    );
    assert_says(fault("fault_load", &x, Some(256)), &["fault_load", "out of bounds: a load", &address]);
    assert_eq!(fault("fault_store", &x, Some(255)), Ok(()));
}

#[test]
fn memory_that_was_taken_back_is_outside() {
    let gone = Buffer::<i32>::zeroed(256);
    yuan_cuda_shim::unregister(gone.address() as *const _);
    assert_says(fault("fault_none", &gone, None), &["out of bounds"]);
}

#[test]
fn a_misaligned_access_is_noticed() {
    assert_says(fault("fault_misaligned", &Buffer::zeroed(256), None), &["misaligned"]);
}

#[test]
fn a_removed_barrier_is_noticed() {
    let x = Buffer::of(&(0..256).collect::<Vec<i32>>());
    assert_eq!(fault("fault_reverse", &x, Some(1)), Ok(()));
    assert_eq!(x.get(), (0..256).rev().collect::<Vec<i32>>());
    assert!(fault("fault_reverse", &x, Some(0)).is_err());
}

#[test]
fn a_barrier_that_not_all_reach_is_noticed() {
    assert_says(fault("fault_divergent_barrier", &Buffer::zeroed(256), None), &["not all threads reach"]);
    assert_says(fault("fault_deadlock", &Buffer::zeroed(256), None), &["not all threads reach"]);
}

#[test]
fn shared_memory_is_not_read_before_it_is_written() {
    let x = Buffer::zeroed(256);
    assert_eq!(fault("fault_uninitialised", &x, Some(256)), Ok(()));
    let words = ["thread (255, 0, 0)", "no thread of the block has written"];
    assert_says(fault("fault_uninitialised", &x, Some(255)), &words);
}

#[test]
fn kernels_and_arguments_are_checked() {
    let x = Buffer::zeroed(256);
    assert_says(fault("no_such", &x, None), &["there is no kernel no_such"]);
    assert_says(fault("fault_none", &x, Some(1)), &["takes 1 arguments, and not 2"]);
}
