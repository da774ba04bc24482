#![allow(clippy::single_range_in_vec_init)] // one range is meant

use std::{sync::Arc, time::Duration};

use kvferry_cuda::{DeviceUuid, IpcHandle, Library};
use kvferry_cuda_fake::FakeCuda;
use kvferry_memory::{AccessError, HostMemory};

use super::*;
use crate::region::{Memory, MemoryFault};

/// Bytes that tell where they are.
fn pattern(len: u64) -> Vec<u8> {
    (0..len)
        .map(|at| (at.wrapping_mul(0x9e37_79b9) >> 11) as u8)
        .collect()
}

fn gpus(cuda: &FakeCuda) -> Gpus {
    let path = cuda.path().to_owned();
    Gpus::with(move || Library::load_from(&path))
}

fn device(cuda: &FakeCuda, ordinal: u32) -> DeviceUuid {
    let library = Library::load_from(cuda.path()).unwrap();
    library.device(ordinal).unwrap().uuid()
}

fn memory(gpu: &Arc<Gpu>, bytes: u64) -> Memory {
    let own = kvferry_cuda::GpuMemory::allocate(gpu.context(), bytes).unwrap();
    GpuMemory::new(gpu, own).into()
}

fn bytes_of(memory: &Memory) -> Vec<u8> {
    let mut bytes = vec![0; memory.len() as usize];
    memory.read_at(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn memories_of_every_kind_are_copied_to_each_other() {
    const BYTES: u64 = 3_000_000; // more than a few buffers of each ring
    let cuda = FakeCuda::new();
    let gpus = gpus(&cuda);
    let one = gpus.open(device(&cuda, 0)).unwrap();
    let two = gpus.open(device(&cuda, 1)).unwrap();
    let host = || Memory::from(HostMemory::anonymous(BYTES).unwrap());
    let kinds = || {
        [
            host(),
            memory(&one, BYTES),
            memory(&one, BYTES),
            memory(&two, BYTES),
        ]
    };
    let expected = pattern(BYTES);
    for from in kinds() {
        from.write_at(0, &expected).unwrap();
        for to in kinds() {
            to.write_at(0, &vec![0xEE; BYTES as usize]).unwrap();
            // Cut differently, and not all of it.
            from.copy(
                [5..1_500_000, 2_000_000..2_000_007],
                &to,
                [0..7, 10..1_500_005],
            )
            .unwrap();
            let moved = [&expected[5..1_500_000], &expected[2_000_000..2_000_007]].concat();
            let seen = bytes_of(&to);
            assert!(seen[..7] == moved[..7] && seen[10..1_500_005] == moved[7..]);
            assert!(seen[7..10] == [0xEE; 3] && seen[1_500_005..].iter().all(|b| *b == 0xEE));
            let uneven = from.copy([0..10], &to, [0..11]);
            assert!(matches!(
                uneven,
                Err(MemoryFault::Host(AccessError::LengthMismatch))
            ));
        }
        let mut folded = Vec::new();
        from.fold([3..9, 0..2], |piece| folded.extend_from_slice(piece))
            .unwrap();
        assert_eq!(folded, [&expected[3..9], &expected[0..2]].concat());
        assert!(from.read_at(BYTES - 1, &mut [0; 2]).is_err());
        assert!(from.write_at(u64::MAX, &[0; 2]).is_err());
        from.read_at(BYTES, &mut []).unwrap();
    }
    drop((one, two, gpus));
    cuda.is_clean();
}

#[test]
fn a_gpu_is_open_once_and_for_as_long_as_its_memory_is_used() {
    let cuda = FakeCuda::new();
    let gpus = gpus(&cuda);
    let uuid = device(&cuda, 1);
    let one = gpus.open(uuid).unwrap();
    let used = memory(&one, 1000);
    assert!(Arc::ptr_eq(&one, &gpus.open(uuid).unwrap()));
    drop(one);
    assert_eq!(cuda.calls("cuDevicePrimaryCtxRetain"), 1);
    assert_eq!(cuda.get("contexts"), 1);
    drop(used);
    cuda.is_clean();
    drop(gpus.open(uuid).unwrap());
    assert_eq!(cuda.calls("cuDevicePrimaryCtxRetain"), 2);
}

#[test]
fn what_is_missing_is_named() {
    let cuda = FakeCuda::new();
    let source = |device| IpcSource {
        device,
        handle: IpcHandle([7; 64]),
        offset: 0,
        len: 1,
    };
    let nowhere = Gpus::with(|| Library::load_from("/nowhere/libcuda.so.1".as_ref()));
    let error = nowhere.import(&source(DeviceUuid([1; 16]))).unwrap_err();
    assert!(matches!(error, GpuError::NoLibrary(_)), "{error:?}");
    let gpus = gpus(&cuda);
    let error = gpus.import(&source(DeviceUuid([1; 16]))).unwrap_err();
    assert!(matches!(error, GpuError::NoDevice(_)), "{error:?}");
    let uuid = device(&cuda, 0);
    let error = gpus.import(&source(uuid)).unwrap_err();
    assert!(matches!(error, GpuError::HandleRefused(_)), "{error:?}");
    cuda.fail("cuDevicePrimaryCtxRetain", 2, 0, 1);
    let error = gpus.import(&source(uuid)).unwrap_err();
    assert!(matches!(error, GpuError::Context(_)), "{error:?}");
    cuda.fail("cuMemHostRegister_v2", 2, 0, 1);
    let error = gpus.import(&source(uuid)).unwrap_err();
    assert!(matches!(error, GpuError::Staging(_)), "{error:?}");
    // Each of them left nothing behind.
    cuda.is_clean();
}

#[test]
fn a_lost_gpu_is_not_opened_again() {
    let cuda = FakeCuda::new();
    let gpus = gpus(&cuda);
    let uuid = device(&cuda, 0);
    let gpu = gpus.open(uuid).unwrap();
    let lost = memory(&gpu, 4096);
    cuda.lose_the_gpu();
    assert!(lost.read_at(0, &mut [0; 8]).is_err());
    let error = gpus.open(uuid).unwrap_err();
    assert!(matches!(error, GpuError::Lost { device } if device == uuid));
    assert!(error.to_string().contains("restart the agent"));
    // Not even when nobody uses it any more.
    drop((gpu, lost));
    assert!(matches!(gpus.open(uuid), Err(GpuError::Lost { .. })));
}

#[test]
fn a_copy_that_the_gpu_does_not_end_is_not_settled() {
    let cuda = FakeCuda::new();
    let gpus = gpus(&cuda);
    let gpu = gpus.open(device(&cuda, 0)).unwrap();
    let to = memory(&gpu, 4096);
    // The copy is started, and nobody can say whether it was done.
    cuda.fail("cuEventQuery", 999, 0, i64::MAX);
    let error = to.write_at(0, &[1; 100]).unwrap_err();
    assert!(matches!(error, MemoryFault::NotSettled(_)), "{error:?}");
    // One that was never started is.
    cuda.fail("cuEventQuery", 0, 0, 0);
    std::thread::sleep(Duration::from_millis(10));
    cuda.fail("cuEventCreate", 2, 0, 1);
    let error = to.write_at(0, &[1; 100]).unwrap_err();
    assert!(matches!(error, MemoryFault::Gpu(_)), "{error:?}");
}
