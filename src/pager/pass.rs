//! One pass of the model, as the pager sees it.

use super::{
    Backing, Pager, Request,
    sync::{MutexGuard, lock},
};
use crate::error::Result;

/// One pass of the model, from its first layer to its last, and the only one of its pager. It lives longer than its requests: what would use
/// an expert in another pass does not compile.
///
/// ```
/// # let experts = vec![yuan::container::Bytes::copy(&[0; 64])];
/// let pager = yuan::pager::Pager::plain(experts, 1, 64)?;
/// let pass = pager.begin();
/// let request = pass.request(0, &[0], 1)?;
/// assert_eq!(request.order(), [0]);
/// # Ok::<(), yuan::Error>(())
/// ```
///
/// ```compile_fail,E0505
/// # let experts = vec![yuan::container::Bytes::copy(&[0; 64])];
/// let pager = yuan::pager::Pager::plain(experts, 1, 64)?;
/// let pass = pager.begin();
/// let request = pass.request(0, &[0], 1)?;
/// drop(pass);
/// assert_eq!(request.order(), [0]);
/// # Ok::<(), yuan::Error>(())
/// ```
pub struct Pass<'p> {
    pub(super) pager: &'p Pager,
    /// Mapped: what the system had counted when the pass began (`views.rs`).
    pub(super) generation: u64,
    pub(super) _alone: MutexGuard<'p, ()>,
}

impl Pass<'_> {
    /// A layer wants the experts `chosen` by its tokens, `used` a token, in the order of the tokens.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for an expert that there is not.
    pub fn request(&self, layer: usize, chosen: &[usize], used: usize) -> Result<Request<'_>> {
        self.request_beside(layer, chosen, used, |_| false)
    }

    /// [`Pass::request`] where some experts of the next layer, which need not be read ahead, are elsewhere.
    ///
    /// # Errors
    /// As [`Pass::request`].
    pub fn request_beside(
        &self,
        layer: usize,
        chosen: &[usize],
        used: usize,
        elsewhere: impl Fn(usize) -> bool,
    ) -> Result<Request<'_>> {
        chosen.iter().try_for_each(|&expert| self.pager.index(layer, expert).map(|_| ()))?;
        Ok(Request::new(self, layer, chosen, used, elsewhere))
    }

    /// A layer will probably want these experts: where they are streamed they are read as long as nothing is asked for. To be called
    /// when the layer before has made its request.
    ///
    /// # Errors
    /// As [`Pass::request`].
    pub fn guess(&self, layer: usize, experts: &[usize]) -> Result<()> {
        let Backing::Streamed(streamed) = &self.pager.backing else { return Ok(()) };
        for &expert in experts {
            self.pager.index(layer, expert)?;
            if !self.pager.guess(streamed, layer, expert) {
                break;
            }
        }
        Ok(())
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if let Backing::Streamed(streamed) = &self.pager.backing {
            let left = std::mem::take(&mut lock(&streamed.guesses).slots);
            left.iter().for_each(|(_, slot)| slot.cancel());
        }
    }
}
