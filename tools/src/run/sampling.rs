//! Options of the choice of tokens, and of what ends an answer.

use clap::Args;
use serde_json::{Map, Value, json};
use yuan::{
    sampler::{Sampler, Settings},
    session::{Engine, Limits},
};
use yuan_tools::numbers::{self, Seed};

/// How to choose tokens, and when to stop. Names and order (bias, penalties, top-k, top-p, min-p, temperature) are llama.cpp's.
#[derive(Args, Clone, Debug)]
pub struct Sampling {
    /// Temperature; 0 always takes the best token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temp: f32,
    /// Keep the K best tokens (0: all)
    #[arg(long, value_name = "K", default_value_t = 0, value_parser = numbers::top_k)]
    top_k: usize,
    /// Keep the best tokens whose probabilities add up to this
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Keep the tokens that have at least this fraction of the best token's probability
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Seed of the random choices; -1 draws one, which is shown with the figures
    #[arg(long, value_name = "N", default_value = "-1", hide_default_value = true)]
    seed: Seed,
    /// Divide the logits of recent tokens by this (1: no penalty)
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repeat_penalty: f32,
    /// Subtract this from the logits of recent tokens
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    presence_penalty: f32,
    /// Subtract this from a recent token's logit, once for each time that it occurs
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    frequency_penalty: f32,
    /// Number of recent tokens that the penalties look at (0: none, -1: all)
    #[arg(long, value_name = "N", default_value = "64", value_parser = numbers::look_back)]
    repeat_last_n: usize,
    /// Add to the logit of a token, or subtract from it: ID+VALUE, ID-VALUE; 15043-inf forbids token 15043; repeatable
    #[arg(long, value_name = "ID+-V", value_parser = bias)]
    logit_bias: Vec<(u32, f32)>,
    /// End the answer before this text; repeatable
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    stop: Vec<String>,
    /// Continue after <eod>, the end of a document
    #[arg(long)]
    ignore_eod: bool,
}

impl Sampling {
    /// A sampler for this model.
    pub fn sampler(&self, engine: &Engine) -> anyhow::Result<Sampler> {
        let vocab = engine.model().config().vocab;
        if let Some((id, _)) = self.logit_bias.iter().find(|(id, _)| *id as usize >= vocab) {
            anyhow::bail!("--logit-bias: token {id} is outside the vocabulary of 0 to {}", vocab - 1);
        }
        Ok(Sampler::new(self.settings())?)
    }

    /// The sampler of a saved session, which goes on with its settings, or with those that were given.
    pub fn resume(&self, engine: &Engine, saved: Option<Sampler>) -> anyhow::Result<Sampler> {
        let fresh = self.sampler(engine)?;
        let Some(mut saved) = saved else { return Ok(fresh) };
        if self.settings() != Settings::default() {
            saved.set(self.settings())?;
        }
        Ok(saved)
    }

    fn settings(&self) -> Settings {
        Settings {
            logit_bias: self.logit_bias.clone(),
            repeat_penalty: self.repeat_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            repeat_last_n: self.repeat_last_n,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            temperature: self.temp,
            seed: self.seed.0,
        }
    }

    /// Names and values of the settings, for people.
    pub fn named(&self) -> Vec<(&'static str, String)> {
        let count = |n: usize| if n == usize::MAX { "-1".to_owned() } else { n.to_string() };
        let mut all = vec![
            ("temp", self.temp.to_string()),
            ("top_k", self.top_k.to_string()),
            ("top_p", self.top_p.to_string()),
            ("min_p", self.min_p.to_string()),
            ("seed", self.seed.0.map_or("-1".into(), |seed| seed.to_string())),
            ("repeat_penalty", self.repeat_penalty.to_string()),
            ("presence_penalty", self.presence_penalty.to_string()),
            ("frequency_penalty", self.frequency_penalty.to_string()),
            ("repeat_last_n", count(self.repeat_last_n)),
        ];
        all.extend(self.logit_bias.iter().map(|(id, bias)| ("logit_bias", format!("{id}{bias:+}"))));
        all.extend(self.stop.iter().map(|text| ("stop", text.clone())));
        all
    }

    /// Whether an answer that is asked for again is another one.
    pub fn is_random(&self) -> bool {
        self.temp > 0.0
    }

    /// Gives a sampler these settings; its random choices go on, unless there is another seed.
    ///
    /// # Errors
    /// The settings make no sense.
    pub fn change(&self, engine: &Engine, sampler: &mut Sampler) -> anyhow::Result<()> {
        self.sampler(engine)?;
        Ok(sampler.set(self.settings())?)
    }

    /// The same as fields of a request to a server.
    pub fn request(&self) -> Map<String, Value> {
        let bias = |&(id, bias): &(u32, f32)| match bias.is_finite() {
            true => json!([id, bias]),
            false => json!([id, false]),
        };
        let count = |n: usize| if n == usize::MAX { json!(-1) } else { json!(n) };
        let fields = json!({
            "temperature": self.temp, "top_k": self.top_k, "top_p": self.top_p, "min_p": self.min_p, "seed": self.seed.0,
            "repeat_penalty": self.repeat_penalty, "presence_penalty": self.presence_penalty, "frequency_penalty": self.frequency_penalty,
            "repeat_last_n": count(self.repeat_last_n), "logit_bias": self.logit_bias.iter().map(bias).collect::<Vec<_>>(),
            "stop": self.stop, "ignore_eos": self.ignore_eod,
        });
        let Value::Object(mut fields) = fields else { unreachable!("an object") };
        fields.retain(|_, value| !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty()));
        fields
    }

    /// What ends an answer of up to `most` tokens.
    pub fn limits(&self, most: usize) -> Limits {
        Limits { stop_texts: self.stop.clone(), ignore_eod: self.ignore_eod, ..Limits::tokens(most) }
    }
}

/// `15043-1.5`, `15043+2`, `15043-inf`.
fn bias(text: &str) -> Result<(u32, f32), String> {
    let at = text.find(['+', '-']).ok_or("give ID+VALUE or ID-VALUE, as 15043-1.5")?;
    let id = text[..at].parse().map_err(|_| format!("{} is not a token id", &text[..at]))?;
    let value: f32 = text[at..].parse().map_err(|_| format!("{} is not a number", &text[at..]))?;
    if value.is_nan() || value == f32::INFINITY {
        return Err("give a number, or -inf".into());
    }
    Ok((id, value))
}

#[cfg(test)]
mod tests {
    use super::bias;

    #[test]
    fn a_bias_is_an_id_and_a_number() {
        assert_eq!(bias("15043-1.5"), Ok((15043, -1.5)));
        assert_eq!(bias("7+2"), Ok((7, 2.0)));
        assert_eq!(bias("7-inf"), Ok((7, f32::NEG_INFINITY)));
        for wrong in ["7", "7+inf", "7-nan", "-1", "x+1", "7+", "99999999999+1"] {
            assert!(bias(wrong).is_err(), "{wrong}");
        }
    }
}
