//! How a GPU's memory is divided: trunk, keys and values first, then as many experts as there is room for, and where that is all the embedding, and then more keys and values.

/// Bytes that a model wants of a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Everything but embedding and experts.
    pub trunk: u64,
    /// Keys and values of one session: whole pages.
    pub kv: u64,
    /// A page of them.
    pub page: u64,
    /// Intermediate results of a batch.
    pub scratch: u64,
    /// One expert.
    pub expert: u64,
    /// Number of experts.
    pub experts: usize,
    /// The embedding; 0 where the kernels do not read it. Of a token it is one row, which is soon sent.
    pub embedding: u64,
}

/// A GPU's memory, divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// What was divided.
    pub budget: u64,
    /// What wants it.
    pub needs: Needs,
    /// Experts that are kept.
    pub slots: usize,
    /// Places for experts that pass through, where not all are kept.
    pub transient: usize,
    /// Bytes of keys and values, of all sessions together: what one needs, and what nothing else wants.
    pub kv: u64,
    /// Bytes of the embedding, which is kept where all experts are and there is still room; otherwise 0.
    pub embedding: u64,
}

/// Places for experts that pass through: one is computed while the next is copied.
const TRANSIENT: usize = 2;
/// What is left to the system and to the driver's own needs, where the user says nothing: a sixteenth, from 256 MiB to 1 GiB.
const RESERVE: (u64, u64, u64) = (16, 256 << 20, 1 << 30);

impl Room {
    /// What may be taken of `free` bytes.
    pub fn usable(free: u64) -> u64 {
        let (share, least, most) = RESERVE;
        free.saturating_sub((free / share).clamp(least, most))
    }

    /// Divides `budget`, or says how much is needed at least: all but the experts.
    pub fn divide(budget: u64, needs: Needs) -> Result<Self, u64> {
        let fixed = needs.trunk.saturating_add(needs.kv).saturating_add(needs.scratch);
        let Some(left) = budget.checked_sub(fixed) else { return Err(fixed) };
        let places = usize::try_from(left / needs.expert.max(1)).unwrap_or(usize::MAX);
        let transient = if places >= needs.experts { 0 } else { places.min(TRANSIENT) };
        let slots = (places - transient).min(needs.experts);
        let beside = left.saturating_sub((slots as u64).saturating_mul(needs.expert));
        let keeps = slots == needs.experts && beside >= needs.embedding;
        let embedding = if keeps { needs.embedding } else { 0 };
        // Where something is left out, what remains is less than that.
        let more = if keeps && needs.page > 0 { (beside - embedding) / needs.page * needs.page } else { 0 };
        Ok(Self { budget, needs, slots, transient, kv: needs.kv + more, embedding })
    }

    /// Bytes of all places of experts.
    pub fn arena(&self) -> u64 {
        (self.slots + self.transient) as u64 * self.needs.expert
    }

    /// Pages of keys and values.
    pub fn pages(&self) -> u64 {
        self.kv / self.needs.page.max(1)
    }

    /// Bytes that are taken in all.
    pub fn taken(&self) -> u64 {
        self.needs.trunk + self.kv + self.needs.scratch + self.arena() + self.embedding
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const M32: Needs = Needs {
        trunk: 1_100 << 20,
        kv: 805 << 20,
        page: 115 << 20,
        scratch: 150 << 20,
        expert: 28_311_552,
        experts: 768,
        embedding: 280 << 20,
    };

    #[test]
    fn what_is_left_holds_experts() {
        let room = Room::divide(Room::usable(16 << 30), M32).unwrap();
        assert_eq!(room.transient, 2);
        assert!((480..500).contains(&room.slots), "{room:?}");
        assert!(room.taken() <= room.budget && room.budget - room.taken() < M32.expert);
    }

    #[test]
    fn all_experts_need_no_transient_places() {
        let room = Room::divide(80 << 30, M32).unwrap();
        assert_eq!((room.slots, room.transient), (768, 0));
    }

    #[test]
    fn the_embedding_comes_after_all_experts() {
        let experts = M32.trunk + M32.kv + M32.scratch + 768 * M32.expert;
        let kept = |budget| Room::divide(budget, M32).map(|r| (r.slots, r.embedding, r.taken()));
        assert_eq!(kept(experts + M32.embedding), Ok((768, M32.embedding, experts + M32.embedding)));
        assert_eq!(kept(experts + M32.embedding - 1), Ok((768, 0, experts)));
        assert_eq!(kept(experts - 1).map(|r| r.1), Ok(0));
    }

    #[test]
    fn what_nothing_else_wants_holds_keys_and_values() {
        let all = M32.trunk + M32.kv + M32.scratch + 768 * M32.expert + M32.embedding;
        let kv = |more: u64| Room::divide(all + more, M32).map(|r| (r.kv - M32.kv, r.taken() - all));
        assert_eq!(kv(M32.page - 1), Ok((0, 0)));
        assert_eq!(kv(3 * M32.page + 1), Ok((3 * M32.page, 3 * M32.page)));
        let without = Room::divide(all - 1, M32).unwrap();
        assert_eq!((without.kv, without.embedding), (M32.kv, 0));
    }

    #[test]
    fn a_small_gpu_holds_the_trunk_alone() {
        let fixed = M32.trunk + M32.kv + M32.scratch;
        let places = |n: u64| Room::divide(fixed + n * M32.expert, M32).map(|r| (r.slots, r.transient));
        assert_eq!(places(0), Ok((0, 0)));
        assert_eq!(places(1), Ok((0, 1)));
        assert_eq!(places(3), Ok((1, 2)));
        assert_eq!(Room::divide(fixed - 1, M32), Err(fixed));
    }

    #[test]
    fn absurd_sizes_do_not_overflow() {
        let huge = Needs { trunk: u64::MAX, kv: u64::MAX, ..M32 };
        assert_eq!(Room::divide(u64::MAX - 1, huge), Err(u64::MAX));
        assert_eq!(Room::usable(0), 0);
        assert!(Room::divide(1 << 40, Needs { expert: 0, experts: 0, ..M32 }).is_ok());
    }
}
