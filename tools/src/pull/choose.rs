//! Which files of a repository make a model.

use anyhow::{Context, bail};
use yuan_hub::Remote;

/// Files of a checkpoint beside its weights, as far as they are there.
const BESIDE: [&str; 7] = [
    "config.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "quantize_config.json",
    "quant_config.json",
];
/// The larger ones of them are none.
const LARGEST_BESIDE: u64 = 1 << 30;

/// What is fetched.
#[derive(Debug, PartialEq, Eq)]
pub enum Chosen {
    /// A file that can be run as it is.
    Container(Remote),
    /// A checkpoint: what is read first, and the weights.
    Checkpoint { beside: Vec<Remote>, weights: Vec<Remote> },
}

impl Chosen {
    pub fn files(&self) -> impl Iterator<Item = &Remote> {
        let (one, more) = match self {
            Self::Container(file) => (std::slice::from_ref(file), &[][..]),
            Self::Checkpoint { beside, weights } => (&beside[..], &weights[..]),
        };
        one.iter().chain(more)
    }
}

/// Chooses among the files at the root of a repository, in the order in which a folder's weights are looked for. `named` is a GGUF file.
///
/// # Errors
/// There is no model, or there are several.
pub fn choose(files: &[Remote], named: Option<&str>) -> anyhow::Result<Chosen> {
    let names = |list: &[&Remote]| list.iter().map(|file| file.path.as_str()).collect::<Vec<_>>().join(", ");
    let at_root = || files.iter().filter(|file| !file.path.contains('/'));
    let matching =
        |fits: &dyn Fn(&str) -> bool| at_root().filter(|file| fits(&file.path)).collect::<Vec<_>>();
    let containers = matching(&|name| name.ends_with(".gguf"));
    if let Some(named) = named {
        let found = containers.iter().find(|file| file.path == named);
        let found = found.with_context(|| match names(&containers) {
            list if list.is_empty() => "there are no GGUF files to choose from".to_owned(),
            list => format!("there is no GGUF file {named}; there is {list}"),
        })?;
        return Ok(Chosen::Container((*found).clone()));
    }
    let has = |name: &str| at_root().any(|file| file.path == name);
    let mut weights = matching(&|name| name.starts_with("gptq_model-") && name.ends_with(".safetensors"));
    let of_bits = |name: &str| name.split_once("bit").map(|(before, _)| before.to_owned());
    if let Some(first) = weights.first().map(|file| of_bits(&file.path))
        && weights.iter().any(|file| of_bits(&file.path) != first)
    {
        bail!("there are several checkpoints: {}; give a repository of one", names(&weights));
    }
    for (single, begins, ends) in
        [("model.safetensors", "", ".safetensors"), ("pytorch_model.bin", "pytorch_model", ".bin")]
    {
        if weights.is_empty() && has(single) {
            weights = matching(&|name| name == single);
        }
        if weights.is_empty() {
            weights = matching(&|name| name.starts_with(begins) && name.ends_with(ends));
        }
    }
    match (&weights[..], &containers[..]) {
        ([], [one]) => Ok(Chosen::Container((*one).clone())),
        ([], []) => bail!("there is no model: neither a checkpoint nor a GGUF file"),
        ([], several) => bail!("choose one with --file: {}", names(several)),
        _ => {
            if let Some(missing) = ["config.json", "tokenizer.model"].into_iter().find(|name| !has(name)) {
                bail!("there is no {missing}, which a checkpoint needs");
            }
            let is_beside = |name: &str| BESIDE.contains(&name);
            let beside = matching(&is_beside);
            if let Some(large) = beside.iter().find(|file| file.size > LARGEST_BESIDE) {
                bail!("{} has {} bytes, which no such file has", large.path, large.size);
            }
            let own = |list: Vec<&Remote>| list.into_iter().cloned().collect();
            Ok(Chosen::Checkpoint { beside: own(beside), weights: own(weights) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(names: &[&str], named: Option<&str>) -> Result<Vec<String>, String> {
        let remote = |name: &&str| Remote { path: (*name).to_owned(), size: 1, sha256: None };
        let files: Vec<_> = names.iter().map(remote).collect();
        choose(&files, named)
            .map(|chosen| chosen.files().map(|file| file.path.clone()).collect())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_checkpoint_goes_before_a_container_and_one_form_of_it_is_enough() {
        let beside = ["config.json", "tokenizer.model", "README.md", "original/model.safetensors"];
        let with = |more: &[&str]| of(&[&beside, more].concat(), None).map(|files| files[2..].join(" "));
        assert_eq!(with(&["model.safetensors", "pytorch_model.bin", "a.gguf"]).unwrap(), "model.safetensors");
        let shards = ["model-1-of-2.safetensors", "model-2-of-2.safetensors"];
        let index = "model.safetensors.index.json";
        assert_eq!(
            with(&[shards[0], shards[1], index, "pytorch_model-1.bin"]).unwrap(),
            format!("{index} {}", shards.join(" "))
        );
        assert_eq!(with(&["pytorch_model-1.bin", "training_args.bin"]).unwrap(), "pytorch_model-1.bin");
        let gptq = "gptq_model-4bit-128g.safetensors";
        assert_eq!(with(&[gptq, "model.safetensors"]).unwrap(), gptq);
        assert!(with(&[gptq, "gptq_model-8bit-128g.safetensors"]).unwrap_err().contains("several"));
        assert_eq!(of(&["a.gguf", "b.txt"], None).unwrap(), ["a.gguf"]);
        assert!(of(&["a.gguf", "b.gguf"], None).unwrap_err().contains("--file: a.gguf, b.gguf"));
        assert_eq!(of(&["a.gguf", "b.gguf"], Some("b.gguf")).unwrap(), ["b.gguf"]);
        assert!(of(&["a.gguf"], Some("c.gguf")).unwrap_err().contains("there is a.gguf"));
        assert!(of(&["x/a.gguf", "README.md"], None).unwrap_err().contains("no model"));
        assert!(of(&["config.json", "model.safetensors"], None).unwrap_err().contains("tokenizer.model"));
    }
}
