//! What goes into the next pass, of the work that waits. Pure data: no threads, no clock.
//!
//! Work of one token, drafts aside, is the next of an answer; work of several is a prompt. Both are served in the order in which they came:
//!
//! - The single tokens go first, all that there is room for.
//! - One prompt gets a piece of what is left. It is small where answers are waited for, so that none of them waits longer than one small piece
//!   and one token take; whoever has more to run comes back at the end of the line, so prompts take turns.
//! - Prompts behind that one which fit in whole ride along.
//! - Drafts get what is then left, each sequence one in turn: they are in nobody's way.
//!
//! Neither kind can shut the other out: where both wait, each has a part of the room.

/// What one pass takes at most.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Sequences, and rows of logits: two at least.
    pub sequences: usize,
    /// Tokens of all sequences: the model's batch, for which there is memory. Two at least.
    pub tokens: usize,
    /// Tokens of a prompt, where answers are waited for.
    pub piece: usize,
}

/// Work that waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Tokens to run, drafts aside.
    pub tokens: usize,
    /// Drafts behind them.
    pub drafted: usize,
}

impl Waiting {
    /// Whether it is the next token of an answer.
    pub fn is_answer(&self) -> bool {
        self.tokens == 1
    }
}

/// A part of a pass: the first `tokens` of the work in this `place` of the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub place: usize,
    pub tokens: usize,
}

/// The next pass, of a line of work with one token each at least: something of the first work of each kind, where there is one, and
/// nothing twice. `answering` says that somebody who is away now will soon want the next token of an answer.
pub fn next_pass(line: &[Waiting], answering: bool, room: &Room) -> Vec<Share> {
    let places = |answers: bool| (0..line.len()).filter(move |&place| line[place].is_answer() == answers);
    let prompts = places(false).next().is_some();
    let reserved = if prompts { room.piece.min(room.tokens / 2) } else { 0 };
    let singles = (room.tokens - reserved).min(room.sequences - usize::from(prompts));
    let mut pass: Vec<_> = places(true).take(singles).map(|place| Share { place, tokens: 1 }).collect();

    let left = room.tokens - pass.len();
    let mut left = if answering || !pass.is_empty() { left.min(room.piece) } else { left };
    let mut first = true;
    for place in places(false) {
        if pass.len() == room.sequences {
            break;
        }
        let tokens = line[place].tokens;
        if first || tokens <= left {
            let tokens = tokens.min(left);
            pass.push(Share { place, tokens });
            left -= tokens;
        }
        first = false;
    }
    add_drafts(&mut pass, line, room);
    pass
}

/// Gives drafts what is left: one to each sequence whose other tokens are in the pass, as often as there is room.
fn add_drafts(pass: &mut [Share], line: &[Waiting], room: &Room) {
    let tokens: usize = pass.iter().map(|share| share.tokens).sum();
    let mut left = (room.tokens - tokens).min(room.sequences - pass.len());
    for nth in 0.. {
        let before = left;
        for share in &mut *pass {
            let Waiting { tokens, drafted } = line[share.place];
            if left > 0 && share.tokens == tokens + nth && nth < drafted {
                share.tokens += 1;
                left -= 1;
            }
        }
        if left == before {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const ROOMS: [Room; 5] = [
        Room { sequences: 2, tokens: 2, piece: 1 },
        Room { sequences: 2, tokens: 4, piece: 4 },
        Room { sequences: 3, tokens: 4, piece: 2 },
        Room { sequences: 4, tokens: 3, piece: 3 },
        Room { sequences: 8, tokens: 8, piece: 2 },
    ];

    /// Work without drafts.
    fn plain(line: &[usize]) -> Vec<Waiting> {
        line.iter().map(|&tokens| Waiting { tokens, drafted: 0 }).collect()
    }

    /// Every line of up to `most` works of these sizes.
    fn lines(most: usize, sizes: &[usize]) -> Vec<Vec<usize>> {
        let mut all = vec![Vec::new()];
        let mut last = all.clone();
        for _ in 0..most {
            let longer =
                |line: &Vec<usize>| sizes.iter().map(|&n| [&line[..], &[n]].concat()).collect::<Vec<_>>();
            last = last.iter().flat_map(longer).collect();
            all.extend(last.iter().cloned());
        }
        all
    }

    /// What must hold of every pass.
    fn check(line: &[usize], answering: bool, room: &Room) {
        let pass = next_pass(&plain(line), answering, room);
        let why = || format!("{line:?} {answering} {room:?}: {pass:?}");
        assert!(pass.len() <= room.sequences, "{}", why());
        assert!(pass.iter().map(|s| s.tokens).sum::<usize>() <= room.tokens, "{}", why());
        assert!(pass.iter().all(|s| (1..=line[s.place]).contains(&s.tokens)), "{}", why());
        let mut places: Vec<_> = pass.iter().map(|s| s.place).collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), pass.len(), "{}", why());
        // The first of each kind is served: nobody can be shut out.
        for single in [true, false] {
            let first = line.iter().position(|&n| (n == 1) == single);
            assert!(first.is_none_or(|place| places.contains(&place)), "{}", why());
        }
        // Where answers are waited for, prompts take no more than a piece; and at most one prompt is cut.
        let prompts = || pass.iter().filter(|s| line[s.place] > 1);
        let answers = answering || line.contains(&1);
        assert!(!answers || prompts().map(|s| s.tokens).sum::<usize>() <= room.piece, "{}", why());
        assert!(prompts().filter(|s| s.tokens < line[s.place]).count() <= 1, "{}", why());
        // No room is left unused by somebody who could use it.
        let singles = line.iter().filter(|&&n| n == 1).count();
        if singles == line.len() {
            assert_eq!(pass.len(), singles.min(room.sequences).min(room.tokens), "{}", why());
        }
    }

    #[test]
    fn every_short_line_is_served_fairly() {
        for line in lines(6, &[1, 2, 3, 9]) {
            for room in &ROOMS {
                check(&line, false, room);
                check(&line, true, room);
            }
        }
    }

    #[test]
    fn one_sequence_gets_the_whole_room() {
        let room = Room { sequences: 64, tokens: 512, piece: 128 };
        assert_eq!(next_pass(&plain(&[4000]), false, &room), [Share { place: 0, tokens: 512 }]);
        assert_eq!(next_pass(&plain(&[4000]), true, &room), [Share { place: 0, tokens: 128 }]);
        assert_eq!(next_pass(&plain(&[1]), false, &room), [Share { place: 0, tokens: 1 }]);
        assert_eq!(next_pass(&plain(&[]), false, &room), []);
    }

    #[test]
    fn answers_go_first_and_short_prompts_ride_along() {
        let room = Room { sequences: 64, tokens: 512, piece: 128 };
        let share = |place, tokens| Share { place, tokens };
        assert_eq!(
            next_pass(&plain(&[4000, 1, 4000, 1]), false, &room),
            [share(1, 1), share(3, 1), share(0, 128)]
        );
        assert_eq!(
            next_pass(&plain(&[20, 4000, 30, 1]), false, &room),
            [share(3, 1), share(0, 20), share(2, 30)]
        );
    }

    /// Everybody comes back until all is run, as sessions do. Returns the passes after which each was done.
    fn run_out(mut left: Vec<usize>, answering: bool, room: &Room) -> Vec<usize> {
        let mut line: VecDeque<usize> = (0..left.len()).collect();
        let mut done = vec![0; left.len()];
        for passes in 1.. {
            if line.is_empty() {
                break;
            }
            let sizes: Vec<_> = line.iter().map(|&who| left[who].min(room.tokens)).collect();
            let pass = next_pass(&plain(&sizes), answering, room);
            let mut served: Vec<_> = pass.iter().map(|s| (s.place, line[s.place], s.tokens)).collect();
            served.sort_unstable();
            for &(place, ..) in served.iter().rev() {
                line.remove(place);
            }
            for (_, who, tokens) in served {
                left[who] -= tokens;
                done[who] = passes;
                if left[who] > 0 {
                    line.push_back(who);
                }
            }
        }
        done
    }

    #[test]
    fn a_short_prompt_behind_long_ones_waits_one_piece_of_each() {
        for before in 1..=8 {
            let room = Room { sequences: 64, tokens: 512, piece: 128 };
            let lengths = [vec![4096; before], vec![100]].concat();
            assert_eq!(run_out(lengths.clone(), false, &room)[before], before + 1);
            assert_eq!(run_out(lengths, true, &room)[before], before + 1);
        }
    }

    #[test]
    fn a_token_beside_long_prompts_is_in_the_next_pass() {
        for room in &ROOMS {
            for prompts in 0..6 {
                let line = [vec![9; prompts], vec![1]].concat();
                assert!(next_pass(&plain(&line), false, room).contains(&Share { place: prompts, tokens: 1 }));
            }
        }
    }

    proptest! {
        #[test]
        fn long_lines_are_served_fairly(
            line in prop::collection::vec(prop_oneof![Just(1usize), 2usize..700], 0..200),
            answering: bool, sequences in 2usize..80, tokens in 2usize..600, piece in 1usize..600,
        ) {
            check(&line, answering, &Room { sequences, tokens, piece: piece.min(tokens) });
        }

        /// Without its drafts a pass is the one that it would be if there were none, and with them it has room for all.
        #[test]
        fn drafts_are_in_nobodys_way(
            line in prop::collection::vec((prop_oneof![Just(1usize), 2usize..700], 0usize..4), 0..60),
            answering: bool, sequences in 2usize..40, tokens in 2usize..600, piece in 1usize..600,
        ) {
            let room = Room { sequences, tokens, piece: piece.min(tokens) };
            let line: Vec<_> = line.into_iter().map(|(tokens, drafted)| Waiting { tokens, drafted }).collect();
            let certain: Vec<_> = line.iter().map(|w| w.tokens).collect();
            let pass = next_pass(&line, answering, &room);
            let bare = |share: &Share| Share { tokens: share.tokens.min(certain[share.place]), ..*share };
            prop_assert_eq!(pass.iter().map(bare).collect::<Vec<_>>(), next_pass(&plain(&certain), answering, &room));
            let drafts = |share: &Share| share.tokens.saturating_sub(certain[share.place]);
            let (rows, all) = (pass.len() + pass.iter().map(drafts).sum::<usize>(), pass.iter().map(|s| s.tokens).sum());
            prop_assert!(rows <= sequences && tokens >= all);
            prop_assert!(pass.iter().all(|share| drafts(share) <= line[share.place].drafted));
            // Nobody has two more than another who wants them, and none is missing where there is room.
            let wants = |share: &&Share| drafts(share) < line[share.place].drafted && share.tokens >= certain[share.place];
            let least = pass.iter().filter(wants).map(drafts).min();
            let most = pass.iter().map(drafts).max().unwrap_or(0);
            prop_assert!(least.is_none_or(|least| most <= least + 1 && (rows == sequences || all == tokens)));
        }

        /// Nobody waits for longer than it takes to serve all who are before him once for each of his own turns.
        #[test]
        fn everybody_is_done_in_time(lengths in prop::collection::vec(1usize..400, 1..20), answering: bool) {
            let room = Room { sequences: 8, tokens: 64, piece: 16 };
            let done = run_out(lengths.clone(), answering, &room);
            for (who, &length) in lengths.iter().enumerate() {
                let turns = length.div_ceil(room.piece) + 1;
                prop_assert!(done[who] <= turns * lengths.len(), "{lengths:?}: {done:?}");
            }
        }
    }
}
