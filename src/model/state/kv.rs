//! The keys and values of one layer, as they are stored.

use std::{ops::Range, sync::Arc};

use bytemuck::cast_slice;
use yuan_kernels::{Kernels, PanelQ4_0, PanelQ8_0};

use super::{
    kv_type::{KvType, Stored},
    page::{Page, STEP},
    pool::Lease,
    scores::quantized_scores,
    store::Rows,
};

/// Positions of a page. Attention takes the positions of a page together, so the bits of all results depend on this number.
pub const SPAN: usize = 512;

/// Keys and values of one layer in pages of [`SPAN`] positions; a page has the keys [head][position][dim], then the values: 2 * heads stripes.
///
/// A copy shares the pages: one that is not full is copied when it is written.
#[derive(Clone, Debug)]
pub struct KvCache {
    heads: usize,
    head_dim: usize,
    kv: KvType,
    len: usize,
    pages: Vec<Arc<Page>>,
}

impl KvCache {
    /// An empty cache. `head_dim` is a multiple of the type's blocks.
    pub fn new(heads: usize, head_dim: usize, kv: KvType) -> Self {
        Self { heads, head_dim, kv, len: 0, pages: Vec::new() }
    }

    /// Heads that share the width of a row.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Width of one head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Positions that are filled.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position is filled.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The type of keys and values.
    pub fn kv_type(&self) -> KvType {
        self.kv
    }

    /// Bytes that [`KvCache::reserve`] takes for the positions up to `end`.
    pub fn missing(&self, end: usize) -> u64 {
        let missing = |page: usize| match self.pages.get(page) {
            Some(found) if Arc::strong_count(found) == 1 => {
                self.filled(page, end).saturating_sub(found.leased())
            }
            _ => self.filled(page, end),
        };
        self.written(end).map(missing).sum()
    }

    /// Makes pages of its own for the positions up to `end`, out of `lease`, which has what is missing; or returns `None` where the system has
    /// no memory for them.
    pub fn reserve(&mut self, end: usize, lease: &mut Lease) -> Option<()> {
        let (kv, heads, dim) = (self.kv, self.heads, self.head_dim);
        for i in self.written(end) {
            let filled = self.filled(i, end);
            let Some(page) = self.pages.get_mut(i) else {
                let page = Page::new(heads * SPAN * kv.bytes(dim), lease.split(filled))?;
                self.pages.push(Arc::new(page));
                continue;
            };
            if let Some(own) = Arc::get_mut(page) {
                own.grow(lease.split(filled.saturating_sub(own.leased())));
                continue;
            }
            let mut own = Page::new(page.bytes().len(), lease.split(filled))?;
            let keep = self.len.saturating_sub(i * SPAN);
            let border = heads * SPAN * kv.keys.bytes(dim);
            let (keys, values) = own.bytes_mut().split_at_mut(border);
            let (old_keys, old_values) = page.bytes().split_at(border);
            for (to, from, row) in
                [(keys, old_keys, kv.keys.bytes(dim)), (values, old_values, kv.values.bytes(dim))]
            {
                let stripes = to.chunks_exact_mut(SPAN * row).zip(from.chunks_exact(SPAN * row));
                stripes.for_each(|(to, from)| to[..keep * row].copy_from_slice(&from[..keep * row]));
            }
            *page = Arc::new(own);
        }
        Some(())
    }

    /// The pages that are written when the positions up to `end` are added.
    fn written(&self, end: usize) -> Range<usize> {
        self.len / SPAN..if end > self.len { end.div_ceil(SPAN) } else { 0 }
    }

    /// Bytes of a page that are counted when the positions up to `end` are filled.
    fn filled(&self, page: usize, end: usize) -> u64 {
        let steps = end.saturating_sub(page * SPAN).min(SPAN).div_ceil(STEP);
        (self.heads * steps * STEP * self.kv.bytes(self.head_dim)) as u64
    }

    /// The page that the next position belongs to, where it holds positions before that.
    pub fn last(&self) -> Option<&Arc<Page>> {
        self.pages.get(self.len / SPAN)
    }

    /// The page of positions [`SPAN`] `i` and on.
    pub fn page(&self, i: usize) -> &Arc<Page> {
        &self.pages[i]
    }

    /// Holds the first `len` positions of these pages in place of its own.
    pub fn set_pages(&mut self, pages: impl Iterator<Item = Arc<Page>>, len: usize) {
        self.pages = pages.collect();
        self.len = len;
    }

    /// Has another page in place of a full one that is the same.
    pub fn replace(&mut self, i: usize, page: &Arc<Page>) {
        self.pages[i].clone_from(page);
    }

    /// Bytes of its pages that are counted.
    pub fn leased(&self) -> u64 {
        self.pages.iter().map(|page| page.leased()).sum()
    }

    /// Forgets the positions from `len` on, if there are such, and drops the pages that hold no others.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.pages.truncate(self.len.div_ceil(SPAN));
    }

    /// Is as before the last `positions` were added, which [`KvCache::take_up`] brings back, one by one from the first.
    pub fn hold_back(&mut self, positions: usize) {
        self.len -= positions;
    }

    /// Has the next position again that was held back.
    pub fn take_up(&mut self) {
        debug_assert!(self.len < self.pages.len() * SPAN, "{NO_PAGE}");
        self.len += 1;
    }

    /// The bytes of the first `positions`: keys, head by head, then values, head by head.
    pub fn pieces(&self, positions: usize) -> impl Iterator<Item = &[u8]> {
        (0..2 * self.heads).flat_map(move |i| {
            let starts = (0..positions).step_by(SPAN);
            starts.map(move |start| self.stored(i, &(start..positions.min(start + SPAN))))
        })
    }

    /// [`KvCache::pieces`] of an empty cache with pages for all of them, to be written; it then holds `positions`.
    pub fn pieces_mut(&mut self, positions: usize) -> Vec<&mut [u8]> {
        assert!(self.len == 0 && positions <= self.pages.len() * SPAN, "{NO_PAGE}");
        self.len = positions;
        let (kv, heads, dim) = (self.kv, self.heads, self.head_dim);
        let mut pages: Vec<_> = self.pages.iter_mut().map(|page| stripes(kv, heads, dim, page)).collect();
        let mut pieces = Vec::with_capacity(2 * heads * pages.len());
        for _ in 0..2 * heads {
            for (page, start) in pages.iter_mut().zip((0..positions).step_by(SPAN)) {
                let Some((row, stripe)) = page.next() else { continue };
                pieces.push(&mut stripe[..(positions - start).min(SPAN) * row]);
            }
        }
        pieces
    }

    /// The bytes of some positions of one page, in the order of [`KvCache::pieces`].
    #[cfg(feature = "gpu")]
    pub fn part(&self, positions: Range<usize>) -> impl Iterator<Item = &[u8]> {
        (0..2 * self.heads).map(move |i| self.stored(i, &positions))
    }

    /// Adds `rows` positions, all of one page that is there, and gives their bytes, in the order of [`KvCache::pieces`], to be written.
    #[cfg(feature = "gpu")]
    pub fn extend(&mut self, rows: usize) -> impl Iterator<Item = &mut [u8]> {
        let place = self.len % SPAN;
        assert!(place + rows <= SPAN, "positions of one page");
        let page = self.pages.get_mut(self.len / SPAN).expect(NO_PAGE);
        self.len += rows;
        stripes(self.kv, self.heads, self.head_dim, page)
            .map(move |(row, stripe)| &mut stripe[place * row..][..rows * row])
    }

    /// Adds the next positions, for which there are pages, and says where the rows of each head go: `keys` (rotated) and `values` are [T, heads * head_dim].
    pub(super) fn extend_by<'c>(
        &'c mut self,
        keys: &'c [f32],
        values: &'c [f32],
    ) -> impl Iterator<Item = Rows<'c>> + Send {
        let (kv, heads, dim) = (self.kv, self.heads, self.head_dim);
        let (width, rotation) = (heads * dim, self.rotation());
        let (start, end) = (self.len, self.len + keys.len() / width);
        assert!(end <= self.pages.len() * SPAN, "{NO_PAGE}");
        self.len = end;
        let written = self.pages.iter_mut().enumerate().take(end.div_ceil(SPAN)).skip(start / SPAN);
        written.flat_map(move |(i, page)| {
            let first = start.max(i * SPAN);
            let n = end.min((i + 1) * SPAN) - first;
            let parts = [keys, values].map(|data| &data[(first - start) * width..][..n * width]);
            stripes(kv, heads, dim, page).enumerate().map(move |(i, (row, stripe))| {
                let (data, stored, rotation) =
                    if i < heads { (parts[0], kv.keys, rotation) } else { (parts[1], kv.values, None) };
                let to = &mut stripe[first % SPAN * row..][..n * row];
                Rows { data: &data[i % heads * dim..], width, dim, stored, rotation, to }
            })
        })
    }

    /// How many numbers of a key are rotated together, where keys are: the largest power of two that divides a head.
    pub fn rotation(&self) -> Option<usize> {
        self.kv.rotates_keys().then(|| 1 << self.head_dim.trailing_zeros())
    }

    /// `scores[t][i] = q[t] · key of position i` of one head, for the `positions` given, which are of one page, and queries [T, head_dim],
    /// rotated as the keys are.
    pub fn scores(
        &self,
        kernels: &Kernels,
        head: usize,
        positions: Range<usize>,
        q: &[f32],
        scores: &mut [f32],
    ) {
        if positions.is_empty() {
            return;
        }
        let (dim, keys) = (self.head_dim, self.stored(head, &positions));
        match self.kv.keys {
            Stored::F16 => (kernels.scores_f16)(q, dim, cast_slice(keys), scores),
            Stored::F32 => (kernels.scores_f32)(q, dim, cast_slice(keys), scores),
            Stored::Q8_0 => {
                quantized_scores::<PanelQ8_0, _>(kernels, dim, cast_slice(keys), q, scores, kernels.dot_q8_0)
            }
            Stored::Q4_0 => {
                quantized_scores::<PanelQ4_0, _>(kernels, dim, cast_slice(keys), q, scores, kernels.dot_q4_0)
            }
        }
    }

    /// `y[t] += sum over i of p[t][i] * value of position i` of one head, for `positions` of one page.
    pub fn mix(&self, kernels: &Kernels, head: usize, positions: Range<usize>, p: &[f32], y: &mut [f32]) {
        if positions.is_empty() {
            return;
        }
        let (dim, values) = (self.head_dim, self.stored(self.heads + head, &positions));
        match self.kv.values {
            Stored::F16 => (kernels.mix_f16)(p, dim, cast_slice(values), y),
            Stored::F32 => (kernels.mix_f32)(p, dim, cast_slice(values), y),
            Stored::Q8_0 => (kernels.mix_q8_0)(p, dim, cast_slice(values), y),
            Stored::Q4_0 => (kernels.mix_q4_0)(p, dim, cast_slice(values), y),
        }
    }

    /// The bytes of some positions of one page: keys of head `i`, or, from `heads` on, values.
    fn stored(&self, i: usize, positions: &Range<usize>) -> &[u8] {
        let (page, place) = (positions.start / SPAN, positions.start % SPAN);
        assert!(place + positions.len() <= SPAN, "positions of one page");
        let [keys, values] = [self.kv.keys, self.kv.values].map(|stored| stored.bytes(self.head_dim));
        let (row, before) = match i.checked_sub(self.heads) {
            None => (keys, i * SPAN * keys),
            Some(i) => (values, SPAN * (self.heads * keys + i * values)),
        };
        &self.pages[page].bytes()[before + place * row..][..positions.len() * row]
    }
}

const NO_PAGE: &str = "pages are reserved before they are written";

/// The bytes of a page that nobody else has.
fn own(page: &mut Arc<Page>) -> &mut [u8] {
    Arc::get_mut(page).expect(NO_PAGE).bytes_mut()
}

/// The stripes of a page that nobody else has, each with the bytes of one of its positions.
fn stripes(
    kv: KvType,
    heads: usize,
    dim: usize,
    page: &mut Arc<Page>,
) -> impl Iterator<Item = (usize, &mut [u8])> {
    let [keys, values] = [kv.keys, kv.values].map(|stored| stored.bytes(dim));
    let (key_stripes, value_stripes) = own(page).split_at_mut(heads * SPAN * keys);
    let keys = key_stripes.chunks_exact_mut(SPAN * keys).map(move |stripe| (keys, stripe));
    keys.chain(value_stripes.chunks_exact_mut(SPAN * values).map(move |stripe| (values, stripe)))
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use bytemuck::cast_slice_mut;
    use yuan_kernels::encode::best_encoders;

    use super::{
        super::{
            super::{
                compute::{Arithmetic, Compute},
                threads::Threads,
            },
            pool::Pool,
            store::{encode, store},
        },
        *,
    };

    static COMPUTE: LazyLock<Compute> =
        LazyLock::new(|| Compute::new(Threads::new(2, 2).unwrap(), Arithmetic::Integer, None).unwrap());
    static POOL: LazyLock<Arc<Pool>> = LazyLock::new(|| Pool::new(u64::MAX, 1));

    /// Makes room for so many positions in all, whatever it takes.
    fn reserve(cache: &mut KvCache, end: usize) {
        let mut lease = POOL.take(cache.missing(end)).unwrap();
        cache.reserve(end, &mut lease).unwrap();
        assert_eq!(lease.bytes(), 0, "exactly what was missing is taken");
    }

    fn push(cache: &mut KvCache, keys: &[f32], values: &[f32]) {
        store(&COMPUTE, keys.len() + values.len(), [(cache, keys, values)].into_iter());
    }

    const HEADS: usize = 3;
    const DIM: usize = 32;
    const WIDTH: usize = HEADS * DIM;

    /// Rows that nobody else has.
    fn rows(seed: usize, n: usize) -> Vec<f32> {
        (0..n * WIDTH)
            .map(|i| (((seed * 7919 + i) * 2_654_435_761) >> 7 & 0xffff) as f32 / 32768.0 - 1.0)
            .collect()
    }

    /// What [`KvCache::pieces`] gives of rows that were never in pages.
    fn expected(kv: KvType, keys: &[f32], values: &[f32]) -> Vec<u8> {
        let mut out = Vec::new();
        for (data, stored, is_key) in [(keys, kv.keys, true), (values, kv.values, false)] {
            for (head, row) in (0..HEADS).flat_map(|h| data.chunks_exact(WIDTH).map(move |row| (h, row))) {
                let mut bytes = vec![0u64; stored.bytes(DIM).div_ceil(8)];
                let bytes = &mut cast_slice_mut(&mut bytes)[..stored.bytes(DIM)];
                let mut row = row[head * DIM..][..DIM].to_vec();
                if is_key && kv.rotates_keys() {
                    (best_encoders().rotate)(&mut row, DIM);
                }
                encode(stored, &row, bytes);
                out.extend_from_slice(bytes);
            }
        }
        out
    }

    fn bytes(cache: &KvCache) -> Vec<u8> {
        cache.pieces(cache.len()).flatten().copied().collect()
    }

    /// Three caches that are pushed to, cut and copied from one another: each always holds its own rows, in the order of a saved session.
    #[test]
    fn a_cache_holds_its_rows_whatever_its_copies_do() {
        for kv in KvType::SAMPLES.into_iter().chain(KvType::from_name("q4_0:f16")) {
            let mut caches: Vec<_> =
                (0..3).map(|_| (KvCache::new(HEADS, DIM, kv), Vec::new(), Vec::new())).collect();
            for step in 0..60 {
                let dice = rows(step, 1);
                let pick = |i: usize, below: usize| ((dice[i] + 1.0) * 0.5 * below as f32) as usize;
                let i = pick(0, 3);
                let (cache, keys, values) = &mut caches[i];
                match pick(1, 4) {
                    0 => {
                        let copy = caches[pick(2, 3)].clone();
                        caches[i] = copy;
                    }
                    1 => {
                        let len = pick(2, cache.len() + 1);
                        cache.truncate(len);
                        keys.truncate(len * WIDTH);
                        values.truncate(len * WIDTH);
                    }
                    _ => {
                        let n = [1, 3, 200, 600][pick(2, 4)];
                        let new = [rows(2 * step + 1000, n), rows(2 * step + 1001, n)];
                        let end = cache.len() + n;
                        reserve(cache, end);
                        push(cache, &new[0], &new[1]);
                        keys.extend_from_slice(&new[0]);
                        values.extend_from_slice(&new[1]);
                    }
                }
                for (cache, keys, values) in &caches {
                    assert_eq!(cache.len() * WIDTH, keys.len());
                    assert!(bytes(cache) == expected(kv, keys, values), "{kv:?}, step {step}");
                }
            }
            let (longest, ..) = caches.iter().max_by_key(|(c, ..)| c.len()).unwrap();
            let mut read = KvCache::new(HEADS, DIM, kv);
            reserve(&mut read, longest.len());
            let all = bytes(longest);
            let mut rest = &all[..];
            for piece in read.pieces_mut(longest.len()) {
                piece.copy_from_slice(rest.split_off(..piece.len()).unwrap());
            }
            assert!(rest.is_empty() && longest.len() > SPAN && bytes(&read) == all);
        }
    }

    #[test]
    fn only_the_page_that_is_written_is_copied() {
        let mut first = KvCache::new(HEADS, DIM, KvType::F16);
        reserve(&mut first, SPAN + 10);
        push(&mut first, &rows(1, SPAN + 10), &rows(2, SPAN + 10));
        let mut second = first.clone();
        let shared = |a: &KvCache, b: &KvCache| [0, 1].map(|i| Arc::ptr_eq(&a.pages[i], &b.pages[i]));
        reserve(&mut second, SPAN + 10);
        assert_eq!(shared(&first, &second), [true, true]);
        reserve(&mut second, SPAN + 11);
        assert_eq!(shared(&first, &second), [true, false]);
        assert!(bytes(&first) == bytes(&second));
        second.truncate(SPAN);
        reserve(&mut second, SPAN + 1);
        assert_eq!(shared(&first, &second), [true, false]);
        second.truncate(SPAN - 1);
        assert_eq!(second.pages.len(), 1);
        reserve(&mut second, SPAN);
        assert!(!Arc::ptr_eq(&first.pages[0], &second.pages[0]));
    }

    /// A page is counted in steps of 64 positions, and what has been filled once stays counted as long as the page is there.
    #[test]
    fn pages_are_counted_as_they_fill() {
        let pool = Pool::new(u64::MAX, 1);
        let mut cache = KvCache::new(HEADS, DIM, KvType::F16);
        let step = (STEP * KvType::F16.bytes(WIDTH)) as u64;
        let mut run = |cut: usize, rows: usize| {
            cache.truncate(cut);
            let end = cache.len() + rows;
            let mut lease = pool.take(cache.missing(end)).unwrap();
            cache.reserve(end, &mut lease).unwrap();
            drop(lease);
            push(&mut cache, &self::rows(1, rows), &self::rows(2, rows));
            assert_eq!(cache.leased(), pool.usage().bytes);
            (pool.usage().bytes / step, pool.usage().pages)
        };
        assert_eq!(run(0, 1), (1, 1));
        assert_eq!(run(1, 63), (1, 1));
        assert_eq!(run(64, 1), (2, 1));
        assert_eq!(run(65, 512), (10, 2));
        assert_eq!(run(512, 1), (9, 2));
        assert_eq!(run(10, 1), (8, 1));
    }
}
