//! Passes of rows of activations through one tile of the published geometry (hidden size 2048), for counting instructions:
//! `tile KERNELS TOKENS PASSES`. What one pass takes is the difference between two passes and one.

use std::error::Error;

use bytemuck::{Zeroable, bytes_of_mut};
use half::f16;
use yuan_kernels::tile::{tile_panels, tile_pass};
use yuan_kernels::{BlockQ8, PanelQ4K, by_name};

const HIDDEN: usize = 2048;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [name, tokens, passes] = args.as_slice() else {
        return Err("usage: tile KERNELS TOKENS PASSES".into());
    };
    let kernels = by_name(name).ok_or("this CPU has no such kernels")?;
    let (tokens, passes): (usize, usize) = (tokens.parse()?, passes.parse()?);

    let mut panel = PanelQ4K::zeroed();
    for (i, byte) in bytes_of_mut(&mut panel).iter_mut().enumerate() {
        *byte = ((i * i) >> 3) as u8;
    }
    panel.d = [f16::from_f32(1e-3); 16];
    panel.dmin = panel.d;
    let tile = vec![panel; tile_panels(HIDDEN)];
    let x: Vec<f32> = (0..tokens * HIDDEN).map(|i| (i % 97) as f32 / 97.0 - 0.5).collect();
    let mut blocks = vec![BlockQ8::zeroed(); x.len() / 256];
    (kernels.quantize)(&x, &mut blocks);
    let mut y = vec![[0.0; 16]; x.len() / 16];
    for _ in 0..passes {
        tile_pass(kernels, &tile, HIDDEN, &blocks, &mut y);
    }
    println!("{name}: {}", y[0][0]);
    Ok(())
}
