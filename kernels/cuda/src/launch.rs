//! How each operation is launched: the kernel, the grid, the block. Plain functions of the shapes, shared by the host and the tests.

use yuan_kernels::{DType, blocks::QK, panel::PANEL_ROWS, tile::TILE_NEURONS};

use crate::Kernel;

/// Most tokens that the kernels for few tokens take: above it the `many` forms are launched.
pub const FEW: usize = 8;
/// Positions that have a softmax of their own, as on the CPU, and a page of keys and values.
pub const SPAN: usize = 512;
/// Most experts of a layer.
pub const MOST_EXPERTS: usize = 256;
/// Most experts of a token.
pub const MOST_USED: usize = 16;
/// Widest head.
pub const MOST_DIM: usize = 256;
/// Numbers that one block of [`top_k`] chooses from.
pub const TOP_CHUNK: usize = 4096;

/// Most queries that a block of `attend_many` takes together: a group.
pub const QUERIES: usize = 8;
/// Numbers that say where a row of a pass stands, i32: its position, its sequence, whether it is the first of that, and one that is unused.
pub const ROW: usize = 4;
/// Tokens, or slots, and rows that a block of the `many` products takes.
const TILE: (usize, usize) = (32, 64);
/// Bytes of shared memory that every device grants without being asked.
const SHARED: usize = 48 << 10;

/// A kernel with its grid, its block and its bytes of dynamic shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The symbol in the module.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

/// A launch of blocks of 256 threads, or `None` where there is no such kernel or the grid is too large or empty.
fn launch(kernel: &str, grid: [usize; 3]) -> Option<Launch> {
    let limits = [i32::MAX as usize, 65535, 65535];
    let fits = grid.iter().zip(limits).all(|(&n, most)| (1..=most).contains(&n));
    let kernel = Kernel::named(kernel)?.name;
    fits.then(|| Launch { kernel, grid: grid.map(|n| n as u32), block: [256, 1, 1], shared: 0 })
}

/// `embed_*`: the rows of `tokens` ids.
pub fn embed(dtype: DType, tokens: usize) -> Option<Launch> {
    launch(&format!("embed_{}", dtype.name()), [tokens, 1, 1])
}

/// `rms_norm` of `tokens` rows of `cols`; a row is held in shared memory, which bounds `cols`.
pub fn rms_norm(cols: usize, tokens: usize) -> Option<Launch> {
    let shared = 4 * cols.checked_next_multiple_of(QK)?;
    let launch = launch("rms_norm", [tokens, 1, 1])?;
    (shared <= SHARED - 1024).then_some(Launch { shared: shared as u32, ..launch })
}

/// `quantize` of `rows` rows of `cols`: a warp for every block of 256.
pub fn quantize(cols: usize, rows: usize) -> Option<Launch> {
    launch("quantize", [(rows * cols.div_ceil(QK)).div_ceil(8), 1, 1])
}

/// `product_*` of a matrix [rows, cols] in panels, or in rows where it has a float type, with `tokens` rows.
pub fn product(dtype: DType, rows: usize, cols: usize, tokens: usize) -> Option<Launch> {
    match dtype {
        DType::F32 | DType::F16 | DType::Bf16 => {
            launch(&format!("product_{}", dtype.name()), [rows.div_ceil(8), tokens.div_ceil(4), 1])
        }
        _ if !rows.is_multiple_of(PANEL_ROWS) || !cols.is_multiple_of(QK) => None,
        _ if tokens > FEW => {
            let grid = [rows.div_ceil(TILE.1), tokens.div_ceil(TILE.0), 1];
            let launch = launch(&format!("product_{}_many", dtype.name()), grid)?;
            Some(Launch { block: [128, 1, 1], ..launch })
        }
        _ => {
            let most = tokens.next_power_of_two();
            launch(&format!("product_{}_{most}", dtype.name()), [rows / PANEL_ROWS, 1, 1])
        }
    }
}

/// `filter_pairs` of `tokens` inputs of `cols`.
pub fn filter_pairs(cols: usize, tokens: usize) -> Option<Launch> {
    launch("filter_pairs", [(tokens * (2 * cols).div_ceil(QK)).div_ceil(8), 1, 1])
}

/// `heads_*`: queries, keys and values of `tokens` rows. `kv` is `F16` or `Q8_0`.
pub fn heads(kv: DType, heads: usize, dim: usize, tokens: usize) -> Option<Launch> {
    let fits = dim <= MOST_DIM && dim.is_multiple_of(32);
    launch(&format!("heads_{}", kv.name()), [heads, tokens, 1]).filter(|_| fits)
}

/// Spans of [`SPAN`] positions that hold `positions`.
pub const fn spans(positions: usize) -> usize {
    positions.div_ceil(SPAN)
}

/// Floats of the partial results of [`attend_spans`].
pub const fn partials(heads: usize, dim: usize, spans: usize, tokens: usize) -> usize {
    tokens * heads * spans * (dim + 2)
}

/// `attend_spans_*` for rows of sequences that have few: every span of every head has a block. [`attend_join`] must follow.
pub fn attend_spans(kv: DType, heads: usize, dim: usize, spans: usize, tokens: usize) -> Option<Launch> {
    let fits = dim <= MOST_DIM && dim.is_multiple_of(32);
    launch(&format!("attend_spans_{}", kv.name()), [heads, spans, tokens]).filter(|_| fits)
}

/// `attend_join`: the spans of each head put together.
pub fn attend_join(heads: usize, tokens: usize) -> Option<Launch> {
    launch("attend_join", [heads, tokens, 1])
}

/// `attend_many_*` for a batch: a block takes a group of queries of one head over all positions.
pub fn attend_many(kv: DType, heads: usize, dim: usize, groups: usize) -> Option<Launch> {
    let fits = dim <= MOST_DIM && dim.is_multiple_of(32);
    launch(&format!("attend_many_{}", kv.name()), [heads, groups, 1]).filter(|_| fits)
}

/// `route`: the experts of `tokens` tokens from their projections, by either router.
pub fn route(experts: usize, used: usize, tokens: usize) -> Option<Launch> {
    let fits = experts <= MOST_EXPERTS && (1..=MOST_USED.min(experts)).contains(&used);
    launch("route", [tokens, 1, 1]).filter(|_| fits)
}

/// `sort_slots`: all slots of a batch by their experts. One block.
pub fn sort_slots(experts: usize) -> Option<Launch> {
    launch("sort_slots", [1, 1, 1]).filter(|_| experts <= MOST_EXPERTS)
}

/// `expert_gate_up_*` for few tokens: every slot (token, choice) has blocks of its own.
pub fn expert_gate_up(dtype: DType, slots: usize, tiles: usize) -> Option<Launch> {
    let groups = tiles * (TILE_NEURONS / PANEL_ROWS);
    launch(&format!("expert_gate_up_{}", dtype.name()), [slots, groups, 1])
}

/// `expert_down_*` for few tokens.
pub fn expert_down(dtype: DType, slots: usize, hidden: usize) -> Option<Launch> {
    launch(&format!("expert_down_{}", dtype.name()), [slots, hidden / PANEL_ROWS, 1])
}

/// `expert_gate_up_many_*`: slots sorted by expert.
pub fn expert_gate_up_many(dtype: DType, slots: usize, experts: usize, tiles: usize) -> Option<Launch> {
    let grid = [tiles * TILE_NEURONS / TILE.1, slot_tiles(slots, experts), 1];
    let launch = launch(&format!("expert_gate_up_many_{}", dtype.name()), grid)?;
    Some(Launch { block: [128, 1, 1], ..launch })
}

/// `expert_down_many_*`: slots sorted by expert.
pub fn expert_down_many(dtype: DType, slots: usize, experts: usize, hidden: usize) -> Option<Launch> {
    let grid = [hidden.div_ceil(TILE.1), slot_tiles(slots, experts), 1];
    let launch = launch(&format!("expert_down_many_{}", dtype.name()), grid)?;
    Some(Launch { block: [128, 1, 1], ..launch })
}

/// Most tiles of slots that there can be, where each expert begins a new one: blocks beyond the last one end at once.
fn slot_tiles(slots: usize, experts: usize) -> usize {
    slots.div_ceil(TILE.0) + experts.min(slots)
}

/// `combine`: the outputs of the experts of `tokens` tokens, added to the residual.
pub fn combine(hidden: usize, tokens: usize) -> Option<Launch> {
    launch("combine", [hidden.div_ceil(256), tokens, 1])
}

/// `top_k` of `n` numbers, by chunks of [`TOP_CHUNK`]; a second launch over the chunks' choices chooses from those.
pub fn top_k(n: usize, k: usize) -> Option<Launch> {
    launch("top_k", [n.div_ceil(TOP_CHUNK), 1, 1]).filter(|_| k <= TOP_CHUNK)
}
