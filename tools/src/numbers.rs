//! Numbers of the command line, with their limits.

use std::{fmt, str::FromStr};

use yuan::limits::{MOST_BATCH, MOST_CONTEXT, MOST_READERS, MOST_SIMULATED, MOST_VOCAB, most_threads};

/// Tokens to generate at most: a number, or -1 for as many as the context has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Most {
    /// So many.
    Tokens(usize),
    /// Until the model or the context ends the answer.
    Room,
}

impl FromStr for Most {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "-1" => Ok(Self::Room),
            _ => number(text, 0, MOST_CONTEXT).map(Self::Tokens).map_err(|e| e + ", or -1 for no limit"),
        }
    }
}

impl fmt::Display for Most {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tokens(n) => n.fmt(f),
            Self::Room => f.write_str("-1"),
        }
    }
}

impl Most {
    /// The context that an answer behind `before` tokens needs; without a limit it is what the model was made for.
    pub fn context(self, before: usize, trained: usize) -> usize {
        match self {
            Self::Tokens(n) => before + n,
            Self::Room => trained.max(before),
        }
    }

    /// The tokens of an answer behind `before` tokens in a context of so many. The last token of an answer is not run, so it needs no room.
    pub fn within(self, before: usize, context: usize) -> usize {
        match self {
            Self::Tokens(n) => n,
            Self::Room => (context + 1).saturating_sub(before),
        }
    }
}

/// The seed of random choices: a number, or -1 for a random one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(pub Option<u64>);

impl FromStr for Seed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "-1" => Ok(Self(None)),
            _ => text
                .parse()
                .map(|seed| Self(Some(seed)))
                .map_err(|_| "give a number, or -1 for a random one".into()),
        }
    }
}

/// A number from `least` to `most`.
pub fn number(text: &str, least: usize, most: usize) -> Result<usize, String> {
    let fail = || format!("give a number from {least} to {most}");
    text.parse().ok().filter(|n| (least..=most).contains(n)).ok_or_else(fail)
}

/// Numbers of tokens: `512`, or those from the first to the last: `1-4`, `0-4096+512`, `128-1024*2`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series(Vec<usize>);

/// Numbers of a series at most.
const MOST_OF_SERIES: usize = 1000;

impl FromStr for Series {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((first, rest)) = text.split_once('-').filter(|(first, _)| !first.is_empty()) else {
            return tokens(text).map(|n| Self(vec![n]));
        };
        let (last, step, factor) = match (rest.split_once('+'), rest.split_once('*')) {
            (Some((last, step)), _) => (last, number(step, 1, MOST_CONTEXT)?, 1),
            (_, Some((last, factor))) => (last, 0, number(factor, 2, MOST_CONTEXT)?),
            _ => (rest, 1, 1),
        };
        let (first, last) = (tokens(first)?, tokens(last)?);
        if first > last || factor > 1 && first == 0 {
            return Err("give FIRST-LAST, FIRST-LAST+STEP or FIRST-LAST*FACTOR, the first not above the last and not 0 where there is a factor".into());
        }
        let next = |&n: &usize| Some(n * factor + step).filter(|n| *n <= last);
        let all: Vec<usize> = std::iter::successors(Some(first), next).take(MOST_OF_SERIES + 1).collect();
        if all.len() > MOST_OF_SERIES {
            return Err(format!("these are more than {MOST_OF_SERIES} numbers; give a larger step"));
        }
        Ok(Self(all))
    }
}

/// The numbers of all series, in their order.
pub fn all(series: &[Series]) -> Vec<usize> {
    series.iter().flat_map(|Series(numbers)| numbers).copied().collect()
}

/// Two numbers of tokens with a comma between them.
pub fn pair(text: &str) -> Result<(usize, usize), String> {
    let parts = text.split_once(',').ok_or("give two numbers of tokens with a comma between them")?;
    Ok((tokens(parts.0)?, tokens(parts.1)?))
}

/// Sequences that run together.
pub fn sequences(text: &str) -> Result<usize, String> {
    number(text, 1, 1024)
}

/// Threads that compute.
pub fn threads(text: &str) -> Result<usize, String> {
    number(text, 0, most_threads())
        .map_err(|e| e + " (more would only wait for each other on this machine), or 0 for the usual number")
}

/// Threads of another machine.
pub fn other_threads(text: &str) -> Result<usize, String> {
    number(text, 1, MOST_SIMULATED)
}

/// Threads that read experts.
pub fn readers(text: &str) -> Result<usize, String> {
    number(text, 0, MOST_READERS).map_err(|e| e + ", or 0 for the usual number")
}

/// `on` or `off`.
pub fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("choose on or off".into()),
    }
}

/// Tokens that go through the model together.
pub fn batch(text: &str) -> Result<usize, String> {
    number(text, 0, MOST_BATCH).map_err(|e| e + ", or 0 for the usual number")
}

/// Tokens of a context, or of a part of it.
pub fn tokens(text: &str) -> Result<usize, String> {
    number(text, 0, MOST_CONTEXT)
}

/// Tokens of a chunk, whose second half has one that is predicted: 3 or more.
pub fn chunk(text: &str) -> Result<usize, String> {
    number(text, 3, MOST_CONTEXT)
}

/// Repetitions of a measurement.
pub fn repetitions(text: &str) -> Result<usize, String> {
    number(text, 1, 1_000_000)
}

/// Tokens that are kept of a vocabulary.
pub fn top_k(text: &str) -> Result<usize, String> {
    number(text, 0, MOST_VOCAB).map_err(|e| e + " (0: all)")
}

/// Tokens that penalties look back: `usize::MAX` for all.
pub fn look_back(text: &str) -> Result<usize, String> {
    match text {
        "-1" => Ok(usize::MAX),
        _ => number(text, 0, MOST_CONTEXT).map_err(|e| e + ", or -1 for all"),
    }
}

/// GB a second.
pub fn rate(text: &str) -> Result<f64, String> {
    real(text, 1e-3, 1e6).map_err(|e| e + " GB a second")
}

/// Milliseconds.
pub fn milliseconds(text: &str) -> Result<f64, String> {
    real(text, 0.0, 1e9).map_err(|e| e + " milliseconds")
}

/// A part of a whole.
pub fn part(text: &str) -> Result<f64, String> {
    real(text, 0.0, 1.0)
}

fn real(text: &str, least: f64, most: f64) -> Result<f64, String> {
    let fail = || format!("give {least} to {most}");
    text.parse().ok().filter(|n| (least..=most).contains(n)).ok_or_else(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_outside_their_limits_are_refused_with_them() {
        assert_eq!((threads("0"), threads("3")), (Ok(0), Ok(3)));
        for wrong in ["100000", "-1", "1.5", "", "99999999999999999999999"] {
            assert!(threads(wrong).unwrap_err().contains(&most_threads().to_string()), "{wrong}");
            assert!(tokens(wrong).is_err() || wrong == "100000");
        }
        assert_eq!((look_back("-1"), look_back("64")), (Ok(usize::MAX), Ok(64)));
        assert_eq!(("-1".parse(), "7".parse()), (Ok(Seed(None)), Ok(Seed(Some(7)))));
        assert!("-2".parse::<Seed>().unwrap_err().contains("-1") && "x".parse::<Seed>().is_err());
        assert!(look_back("-2").is_err() && readers("257").is_err() && repetitions("0").is_err());
        assert!(
            rate("0").is_err() && rate("NaN").is_err() && rate("inf").is_err() && milliseconds("-1").is_err()
        );
    }

    #[test]
    fn a_series_goes_by_steps_or_factors() {
        let series = |text: &str| text.parse::<Series>().map(|series| all(&[series]));
        assert_eq!(series("512"), Ok(vec![512]));
        assert_eq!(series("1-4"), Ok(vec![1, 2, 3, 4]));
        assert_eq!(series("0-1100+512"), Ok(vec![0, 512, 1024]));
        assert_eq!(series("128-1024*2"), Ok(vec![128, 256, 512, 1024]));
        for wrong in ["", "-1", "4-1", "1-", "0-8*2", "1-8*1", "1-8+0", "1-2-3", "1-99999999", "0-5000", "x"]
        {
            assert!(series(wrong).is_err(), "{wrong}");
        }
        assert_eq!(pair("512,128"), Ok((512, 128)));
        assert!(pair("512").is_err() && pair("1,2,3").is_err() && pair("1,99999999").is_err());
    }

    #[test]
    fn an_answer_without_a_limit_ends_with_the_context() {
        assert_eq!("-1".parse(), Ok(Most::Room));
        assert!("-2".parse::<Most>().unwrap_err().contains("-1") && "99999999".parse::<Most>().is_err());
        assert_eq!((Most::Room.context(10, 1024), Most::Tokens(5).context(10, 1024)), (1024, 15));
        assert_eq!(Most::Room.context(2000, 1024), 2000);
        assert_eq!(
            (Most::Room.within(10, 64), Most::Room.within(70, 64), Most::Tokens(9).within(60, 64)),
            (55, 0, 9)
        );
    }
}
