//! `yuan logits`: the logits of given tokens, for checking against other implementations.

use std::{io::Write, path::PathBuf};

use anyhow::ensure;
use clap::Args;
use yuan::{
    files::{NewFile, check_output},
    model::{LOGIT_ROWS, Want},
};
use yuan_tools::{
    console::{cancel_on_stop, stopped},
    open::RunArgs,
};

/// Write the logits of given tokens to a NumPy file: float32, one row for each position
#[derive(Args)]
#[command(after_help = "\
Example:
  yuan logits model.gguf --tokens 1910,2060,804 --output logits.npy
  python3 -c \"import numpy; print(numpy.load('logits.npy').shape)\"")]
pub struct Logits {
    #[command(flatten)]
    run: RunArgs,
    /// Token ids, separated by commas
    #[arg(long, value_delimiter = ',', required = true, value_name = "IDS")]
    tokens: Vec<u32>,
    /// The .npy file to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
}

impl Logits {
    pub fn run(self) -> anyhow::Result<()> {
        check_output(&self.output, 0, &[self.run.model.path()?], "logits.npy")?;
        let engine = self.run.open(self.tokens.len())?;
        let model = engine.model();
        let mut state = model.state(self.tokens.len(), self.run.kv)?;
        let _stop = cancel_on_stop(state.cancel.clone());
        let header = npy_header(self.tokens.len(), model.config().vocab);
        let bytes = header.len() + 4 * self.tokens.len() * model.config().vocab;
        let mut file = NewFile::create(&self.output, bytes as u64)?;
        file.write_all(&header).map_err(|e| file.failed(e))?;
        for batch in self.tokens.chunks(model.batch()) {
            let hidden = model.forward_one(batch, &mut state, Want::Hidden)?;
            for rows in hidden.chunks(LOGIT_ROWS * model.config().hidden) {
                for logit in model.logits(rows)? {
                    file.write_all(&logit.to_le_bytes()).map_err(|e| file.failed(e))?;
                }
                ensure!(!stopped(), "stopped on request");
            }
        }
        Ok(file.finish()?)
    }
}

/// Header of a float32 matrix, NumPy format version 1.0: a Python dict, padded to a multiple of 64 bytes.
fn npy_header(rows: usize, cols: usize) -> Vec<u8> {
    let dict = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {cols}), }}");
    let length = (10 + dict.len() + 1).next_multiple_of(64) - 10;
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend((length as u16).to_le_bytes());
    header.extend(format!("{dict:<width$}\n", width = length - 1).bytes());
    header
}

#[cfg(test)]
mod tests {
    #[test]
    fn npy_header_is_a_multiple_of_64() {
        let header = super::npy_header(3, 4096);
        assert_eq!(header.len() % 64, 0);
        assert_eq!(header.last(), Some(&b'\n'));
        assert!(String::from_utf8_lossy(&header).contains("'shape': (3, 4096)"));
    }
}
