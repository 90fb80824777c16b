//! Which jobs of a request are done one after another by one session, because most of their prompts is the same: the choices of a question, whose
//! likelihoods are asked for.

use crate::work::Job;

/// Jobs with their places in the request, in the order in which a session does them.
pub type Chain = Vec<(usize, Job)>;

/// Tokens in common that are worth waiting for.
const MANY: usize = 64;
/// Places that a session can come back to.
const PARTS: usize = 15;

/// All jobs. Those that have more than one token to say do not wait for each other.
pub fn chains(jobs: Vec<Job>) -> Vec<Chain> {
    let is_short = |job: &Job| job.echo && job.top.is_some() && job.limits.most <= 1;
    let (mut short, long): (Vec<_>, Vec<_>) =
        jobs.into_iter().enumerate().partition(|(_, job)| is_short(job));
    short.sort_by(|(_, a), (_, b)| a.prompt.cmp(&b.prompt));
    let mut chains: Vec<Chain> = Vec::new();
    for (place, job) in short {
        match chains.last_mut() {
            Some(chain) if chain.last().is_some_and(|(_, last)| are_alike(&last.prompt, &job.prompt)) => {
                chain.push((place, job));
            }
            _ => chains.push(vec![(place, job)]),
        }
    }
    chains.extend(long.into_iter().map(|job| vec![job]));
    chains
}

/// Where prompts of the chain part from the first.
pub fn parts(first: &Job, others: &[(usize, Job)]) -> Vec<usize> {
    // In order of the prompts: each has no more in common with the first than the one before it.
    let mut parts: Vec<_> = others.iter().map(|(_, job)| common(&first.prompt, &job.prompt)).collect();
    parts.dedup();
    parts.truncate(PARTS);
    parts
}

/// Whether most of two prompts is the same.
fn are_alike(a: &[u32], b: &[u32]) -> bool {
    let common = common(a, b);
    common >= MANY || 2 * common >= a.len().min(b.len())
}

fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use yuan::{sampler::Settings, session::Limits};

    use super::*;

    fn job(prompt: &[u32], most: usize, echo: bool) -> Job {
        Job {
            prompt: prompt.into(),
            settings: Settings::default(),
            limits: Limits::tokens(most),
            top: Some(1),
            echo,
            progress: false,
            drafting: Default::default(),
        }
    }

    fn places(jobs: &[Job]) -> Vec<Vec<usize>> {
        chains(jobs.to_vec()).iter().map(|chain| chain.iter().map(|(place, _)| *place).collect()).collect()
    }

    #[test]
    fn choices_of_a_question_are_one_chain() {
        let choice = |of: u32, n: u32| job(&[of, of, of, of, n, n], 1, true);
        let jobs = [choice(7, 3), choice(1, 2), choice(7, 1), choice(7, 2), choice(1, 1), job(&[9], 0, true)];
        assert_eq!(places(&jobs), [vec![4, 1], vec![2, 3, 0], vec![5]]);
        // They are answers that wait for each other, so not if they are long; without scores of prompts nothing has to.
        assert_eq!(places(&[job(&[1, 2, 3], 2, true), job(&[1, 2, 3], 2, true)]), [[0], [1]]);
        assert_eq!(places(&[job(&[1, 2, 3], 1, false), job(&[1, 2, 3], 1, false)]), [[0], [1]]);
        let long =
            |end: u32| job(&(0..300).map(|i| if i < 64 { 5 } else { i + end }).collect::<Vec<_>>(), 1, true);
        assert_eq!(places(&[long(0), long(1)]), [[0, 1]], "as many as these, a small part or not");
    }

    #[test]
    fn a_session_comes_back_to_where_the_next_ones_part() {
        let jobs = [
            job(&[1, 2, 3, 4], 1, true),
            job(&[1, 2, 3, 5], 1, true),
            job(&[1, 2, 3, 6], 1, true),
            job(&[1, 3], 1, true),
        ];
        let chains = chains(jobs.to_vec());
        assert_eq!(parts(&chains[0][0].1, &chains[0][1..]), [3, 1]);
        assert!(parts(&chains[0][3].1, &[]).is_empty());
    }
}
