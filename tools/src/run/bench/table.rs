//! The table of `yuan bench -o`: of a model what does not change from row to row, and the rows as they come.

use std::{collections::BTreeMap, fs};

use serde_json::{Map, Value, json};
use yuan::{
    container::Container,
    model::{GpuPlacement, Model},
};
use yuan_tools::{console::count_bar, say::print};

use super::{
    Bench,
    form::{Form, Table, weights},
    rows::{Runner, Test},
    wandering,
};

impl Bench {
    /// Runs the tests, and prints a row of each.
    pub(super) fn table(&self, tests: Vec<Test>) -> anyhow::Result<()> {
        let context = tests.iter().map(|test| test.context()).max().unwrap_or(0);
        let (container, options, _) = self.prepare(context)?;
        let model = self.load(&container, &options)?;
        let vocab = model.config().vocab as u64;
        let facts = self.facts(&container, &model)?;
        let longest = tests.iter().map(|test| test.name().len()).max().unwrap_or(0);
        let mut table = Table::new(self.output.unwrap_or(Form::Md), &facts, longest);
        let bar = count_bar(tests.len() as u64 * self.repeat as u64, "");
        let (kv, repeat, warm_up) = (self.run.kv, self.repeat, !self.no_warmup);
        let runner = Runner { model: &model, kv, repeat, warm_up, bar: &bar };
        for test in tests {
            let measured = runner.run(test, |place| wandering(place, vocab))?;
            let row: Map<_, _> = facts.clone().into_iter().chain(measured.fields()).collect();
            let lines = table.row(&row, &test.name());
            bar.suspend(|| print(&lines))?;
        }
        bar.finish_and_clear();
        print(&table.end())
    }

    /// The fields that are the same in all rows, by their names in llama-bench where it has them.
    fn facts(&self, container: &Container, model: &Model) -> anyhow::Result<Map<String, Value>> {
        let gpu = match &model.placement().gpu {
            GpuPlacement::On { device, .. } => device.as_str(),
            GpuPlacement::Off(_) => "",
        };
        let (count, most) = of_weights(container);
        let kv = self.run.kv;
        let facts = json!({
            "build_commit": yuan::VERSION, "cpu_info": cpu(), "gpu_info": gpu, "backends": if gpu.is_empty() { "CPU" } else { "CUDA" },
            "model_filename": self.run.model.path()?, "model_type": format!("{} {} {most}", model.config().family.name(), weights(count)),
            "model_size": container.data_bytes(), "model_n_params": count as u64,
            "n_batch": model.batch(), "n_threads": model.threads(), "n_threads_batch": model.batch_threads(),
            "type_k": kv.keys.name(), "type_v": kv.values.name(), "kernels": model.kernels(), "paging": model.placement().mode.name(),
        });
        Ok(if let Value::Object(facts) = facts { facts } else { Map::new() })
    }
}

/// How many weights there are, and of which type most bytes are.
fn of_weights(container: &Container) -> (f64, &'static str) {
    let config = container.config();
    let (mut count, mut bytes) = (0.0, BTreeMap::new());
    for tensor in container.tensors() {
        // What is no matrix is an expert in tiles: gate, up and down.
        let shape =
            container.tensor(&tensor.name).map_or((3 * config.ffn, config.hidden), |t| (t.rows, t.cols));
        count += shape.0 as f64 * shape.1 as f64;
        *bytes.entry(tensor.stored.dtype().name()).or_insert(0) += tensor.bytes;
    }
    let most = bytes.into_iter().max_by_key(|(_, bytes)| *bytes);
    (count, most.map_or("", |(name, _)| name))
}

/// The name of the CPU, where the system says it.
fn cpu() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let named = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    named.map_or_else(|| std::env::consts::ARCH.into(), |(_, name)| name.trim().into())
}
