//! Where an expert is computed that is not in the GPU's memory: by what was measured when the model was loaded.

/// Seconds of the two ways.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Costs {
    /// To copy an expert to the GPU, which then computes it in far less time.
    pub copy: f64,
    /// The CPU's, for one token of an expert in memory: reading its weights.
    pub cpu_first: f64,
    /// The CPU's, for every further token.
    pub cpu_more: f64,
}

impl Costs {
    /// The CPU's time for an expert of so many tokens.
    pub fn cpu(&self, tokens: usize) -> f64 {
        match tokens {
            0 => 0.0,
            n => self.cpu_first + (n - 1) as f64 * self.cpu_more,
        }
    }

    /// Whether it is sooner to copy an expert than to compute its `tokens` on the CPU, where the copy will probably save the CPU as
    /// many as `again` later uses.
    pub fn copy_pays(&self, tokens: usize, again: f64) -> bool {
        self.copy <= self.cpu(tokens) + again.max(0.0) * self.cpu_first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An expert of M32 over PCIe 4 x8, and on a CPU that reads 25 GB/s.
    const LAPTOP: Costs = Costs { copy: 2.3e-3, cpu_first: 1.1e-3, cpu_more: 0.6e-3 };

    #[test]
    fn a_single_use_of_one_token_stays_on_the_cpu_and_a_batch_is_copied() {
        assert!(!LAPTOP.copy_pays(1, 0.0));
        assert!(LAPTOP.copy_pays(4, 0.0));
    }

    #[test]
    fn an_expert_that_will_be_used_again_is_copied() {
        assert!(LAPTOP.copy_pays(1, 2.0));
        assert!(!LAPTOP.copy_pays(1, -5.0));
    }

    #[test]
    fn a_fast_bus_always_copies_and_a_slow_one_never() {
        let fast = Costs { copy: 0.5e-3, ..LAPTOP };
        let slow = Costs { copy: f64::INFINITY, ..LAPTOP };
        for tokens in [1, 2, 8, 512] {
            assert!(fast.copy_pays(tokens, 0.0) && !slow.copy_pays(tokens, 100.0));
        }
    }
}
