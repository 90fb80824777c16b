//! The fields of a request that say how tokens are chosen and what ends the answer.

use schemars::JsonSchema;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Number, Value, json};
use yuan::{limits::MOST_CONTEXT, sampler::Settings};

use crate::{messages::Texts, problem::Problem};

// Each answer of a request has its own of these, and looks at them for every token.
const MOST_STOPS: usize = 256;
/// Bytes of all of them.
const LONGEST_STOPS: usize = 1 << 14;
const MOST_BIASES: usize = 1 << 12;

/// OpenAI's fields, and those of llama-server and vLLM that the sampler has.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct Sampling {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    #[serde(alias = "repetition_penalty")]
    repeat_penalty: Option<f32>,
    repeat_last_n: Option<i64>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    seed: Option<Number>,
    logit_bias: Option<Value>,
    /// Anthropic's clients call it otherwise.
    #[serde(alias = "stop_sequences")]
    stop: Option<Texts>,
    #[serde(alias = "ignore_eod")]
    ignore_eos: Option<bool>,
}

impl Sampling {
    /// The sampler's settings. What is not given is as OpenAI has it: all tokens at temperature 1.
    ///
    /// # Errors
    /// A field that makes no sense, or a bias of a token outside a vocabulary of so many.
    pub fn settings(&self, vocab: usize) -> Result<Settings, Problem> {
        let default = Settings::default();
        let settings = Settings {
            temperature: self.temperature.unwrap_or(1.0),
            // OpenAI's may be 0: the best token alone.
            top_p: self.top_p.map_or(default.top_p, |p| if p == 0.0 { f32::MIN_POSITIVE } else { p }),
            top_k: self.top_k.map_or(Ok(default.top_k), |k| count("top_k", k, 0))?,
            min_p: self.min_p.unwrap_or(default.min_p),
            repeat_penalty: self.repeat_penalty.unwrap_or(default.repeat_penalty),
            repeat_last_n: self
                .repeat_last_n
                .map_or(Ok(default.repeat_last_n), |n| count("repeat_last_n", n, usize::MAX))?,
            presence_penalty: self.presence_penalty.unwrap_or(default.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(default.frequency_penalty),
            logit_bias: self.logit_bias.as_ref().map_or_else(|| Ok(Vec::new()), |b| biases(b, vocab))?,
            seed: self.seed.as_ref().map_or(Ok(None), seed)?,
        };
        settings.check()?;
        if settings.logit_bias.len() > MOST_BIASES {
            let message =
                format!("{} biases are too many; give {MOST_BIASES} at most", settings.logit_bias.len());
            return Err(Problem::field("logit_bias", message));
        }
        let (count, bytes) = self.stop.as_ref().map_or((0, 0), Texts::extent);
        if count > MOST_STOPS || bytes > LONGEST_STOPS {
            let message = format!(
                "{count} texts of {bytes} bytes are too many that end an answer; give {MOST_STOPS} of {LONGEST_STOPS} bytes together at most"
            );
            return Err(Problem::field("stop", message));
        }
        Ok(settings)
    }

    /// Texts that end the answer.
    pub fn stop(&self) -> Vec<String> {
        self.stop.clone().map_or_else(Vec::new, Texts::list)
    }

    /// Whether the answer goes on after `<eod>`.
    pub fn ignores_eod(&self) -> bool {
        self.ignore_eos.unwrap_or(false)
    }
}

/// Options of a protocol in which what is not given is not as OpenAI has it.
///
/// # Errors
/// One that is of the wrong type.
pub fn with_defaults<T: DeserializeOwned>(
    mut options: Map<String, Value>,
    defaults: &[(&str, f64)],
) -> Result<T, Problem> {
    options.retain(|_, value| !value.is_null());
    for (name, value) in defaults {
        // Whole numbers where the option is one.
        let value = if value.fract() == 0.0 { json!(*value as i64) } else { json!(value) };
        options.entry(*name).or_insert(value);
    }
    serde_json::from_value(options.into())
        .map_err(|e| Problem::field("options", format!("the options are not as expected: {e}")))
}

/// A number of tokens; -1 is `all`.
fn count(param: &'static str, n: i64, all: usize) -> Result<usize, Problem> {
    match usize::try_from(n) {
        Ok(n) if n <= MOST_CONTEXT => Ok(n),
        _ if n == -1 => Ok(all),
        _ => Err(Problem::field(param, format!("{param} is {n}; give 0 to {MOST_CONTEXT}, or -1 for all"))),
    }
}

/// A whole number of 64 bits; -1 is a random one.
fn seed(number: &Number) -> Result<Option<u64>, Problem> {
    match (number.as_u64(), number.as_i64()) {
        (Some(seed), _) => Ok(Some(seed)),
        (None, Some(-1)) => Ok(None),
        (None, Some(seed)) => Ok(Some(seed.cast_unsigned())),
        (None, None) => Err(Problem::field("seed", format!("a seed is a whole number, and not {number}"))),
    }
}

/// OpenAI's `{"ID": BIAS}`, or llama-server's `[[ID, BIAS]]`, where `false` forbids a token.
fn biases(value: &Value, vocab: usize) -> Result<Vec<(u32, f32)>, Problem> {
    let wrong = || Problem::field("logit_bias", "logit_bias is {\"ID\": BIAS, …} or [[ID, BIAS], …]");
    let pairs: Vec<(Option<u64>, &Value)> = match value {
        Value::Null => Vec::new(),
        Value::Object(map) => map.iter().map(|(id, bias)| (id.parse().ok(), bias)).collect(),
        Value::Array(list) => {
            let pair = |pair: &'_ Value| pair.as_array().filter(|p| p.len() == 2).map(|p| p[0].as_u64());
            list.iter().map(|p| Ok((pair(p).ok_or_else(wrong)?, &p[1]))).collect::<Result<_, Problem>>()?
        }
        _ => return Err(wrong()),
    };
    let bias = |(id, bias): (Option<u64>, &Value)| {
        let id = id.and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong)?;
        if id as usize >= vocab {
            let message = format!("logit_bias names the token {id}, and there are {vocab}");
            return Err(Problem::field("logit_bias", message));
        }
        match bias {
            Value::Bool(false) => Ok((id, f32::NEG_INFINITY)),
            bias => bias.as_f64().map(|bias| (id, bias as f32)).ok_or_else(wrong),
        }
    };
    pairs.into_iter().map(bias).collect()
}

/// A setting as it was written: 0.8, and not the nearest f32 as an f64.
pub fn as_written(setting: f32) -> f64 {
    setting.to_string().parse().unwrap_or_else(|_| setting.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: Value) -> Result<Settings, String> {
        let sampling: Sampling = serde_json::from_value(value).map_err(|e| e.to_string())?;
        sampling.settings(100).map_err(|p| p.message)
    }

    #[test]
    fn fields_become_settings() {
        assert_eq!(of(json!({})).unwrap(), Settings { temperature: 1.0, ..Settings::default() });
        let all = of(json!({
            "temperature": 0.5, "top_p": 0, "top_k": -1, "min_p": 0.1, "repetition_penalty": 1.5, "repeat_last_n": -1,
            "presence_penalty": 0.25, "frequency_penalty": -0.5, "seed": 18446744073709551615u64, "logit_bias": {"7": -100, "99": 2.5},
        }));
        let wanted = Settings {
            temperature: 0.5,
            top_p: f32::MIN_POSITIVE,
            top_k: 0,
            min_p: 0.1,
            repeat_penalty: 1.5,
            repeat_last_n: usize::MAX,
            presence_penalty: 0.25,
            frequency_penalty: -0.5,
            seed: Some(u64::MAX),
            logit_bias: vec![(7, -100.0), (99, 2.5)],
        };
        assert_eq!(all.unwrap(), wanted);
        let more = of(json!({ "seed": -1, "logit_bias": [[3, false], [4, 1]] })).unwrap();
        assert_eq!((more.seed, more.logit_bias), (None, vec![(3, f32::NEG_INFINITY), (4, 1.0)]));
        assert_eq!(of(json!({ "seed": -2 })).unwrap().seed, Some(u64::MAX - 1));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for wrong in [
            json!({ "temperature": -1 }),
            json!({ "temperature": 1e300 }),
            json!({ "temperature": "hot" }),
            json!({ "top_p": 1.5 }),
            json!({ "top_k": -2 }),
            json!({ "top_k": 1u64 << 40 }),
            json!({ "repeat_penalty": 0 }),
            json!({ "seed": 1.5 }),
            json!({ "logit_bias": {"100": 1} }),
            json!({ "logit_bias": {"x": 1} }),
            json!({ "logit_bias": {"1": true} }),
            json!({ "logit_bias": {"1": 1e300} }),
            json!({ "logit_bias": [[1]] }),
            json!({ "logit_bias": 3 }),
            json!({ "stop": 3 }),
            json!({ "stop": vec!["x"; MOST_STOPS + 1] }),
            json!({ "stop": "x".repeat(LONGEST_STOPS + 1) }),
            json!({ "logit_bias": vec![json!([1, 0.5]); MOST_BIASES + 1] }),
        ] {
            assert!(of(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn stop_is_a_text_or_several() {
        let stop = |value| serde_json::from_value::<Sampling>(json!({ "stop": value })).unwrap().stop();
        assert_eq!(stop(json!("a")), ["a"]);
        assert_eq!(stop(json!(["a", "b", "c", "d", "e"])).len(), 5);
        assert!(stop(Value::Null).is_empty());
    }
}
