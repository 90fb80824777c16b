//! What the compiler made of the kernels.

use std::{collections::BTreeMap, fs};

use yuan_cuda::{IMAGES, KERNELS, image_for, images::REGISTERS};

const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/registers.txt");
const HEADER: &str = "# Registers a thread, bytes of stack, bytes spilled and bytes of static shared memory of every kernel.\n\
                      # YUAN_BLESS=1 cargo test -p yuan-cuda --features cuda\n";

#[test]
fn every_image_has_every_kernel() {
    assert_eq!(
        IMAGES.iter().map(|i| (i.architecture, i.ptx)).collect::<Vec<_>>(),
        [(70, false), (75, false), (80, false), (86, false), (89, false), (90, false), (80, true)]
    );
    for image in IMAGES {
        for kernel in KERNELS {
            let name = kernel.name.as_bytes();
            let found = image.bytes.windows(name.len()).any(|w| w == name);
            assert!(found, "{} is not in the image for {}", kernel.name, image.architecture);
        }
    }
}

#[test]
fn a_gpu_gets_machine_code_of_its_generation_or_ptx() {
    let chosen = |major, minor| image_for(major, minor).map(|i| (i.architecture, i.ptx));
    assert_eq!(chosen(6, 1), None);
    assert_eq!(chosen(7, 2), Some((70, false)));
    assert_eq!(chosen(8, 7), Some((86, false)));
    assert_eq!(chosen(8, 9), Some((89, false)));
    assert_eq!(chosen(12, 0), Some((80, true)));
}

#[test]
fn the_table_of_registers_is_current_and_nothing_spills() {
    if std::env::var_os("YUAN_BLESS").is_some() {
        fs::write(COMMITTED, format!("{HEADER}{REGISTERS}")).expect("a file beside the crate");
    }
    let committed = fs::read_to_string(COMMITTED).expect("registers.txt");
    assert_eq!(
        committed,
        format!("{HEADER}{REGISTERS}"),
        "registers.txt is of other kernels or another compiler"
    );
    let mut kernels = BTreeMap::<&str, usize>::new();
    for line in REGISTERS.lines().skip(1) {
        let [_, name, _, stack, spilled, shared] = line.split_whitespace().collect::<Vec<_>>()[..] else {
            panic!("no line of the table: {line}")
        };
        assert_eq!((stack, spilled), ("0", "0"), "{line}");
        assert!(shared.parse::<u32>().expect("bytes") <= 48 << 10, "{line}");
        *kernels.entry(name).or_default() += 1;
    }
    assert_eq!(kernels.len(), KERNELS.len());
    assert!(kernels.values().all(|&n| n == 6), "{kernels:?}");
}
