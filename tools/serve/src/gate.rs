//! Who is let in: so many sequences run, so many requests wait, and further ones are told to come again.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::problem::Problem;

/// The gate of a server.
#[derive(Debug)]
pub struct Gate {
    /// A permit for each sequence that may run.
    sequences: Arc<Semaphore>,
    running: usize,
    queue: usize,
    /// Requests that were let in and have not ended.
    inside: Arc<AtomicUsize>,
}

/// A request that was let in, until this is dropped.
#[derive(Debug)]
pub struct Ticket(Arc<AtomicUsize>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Gate {
    /// A gate for `running` sequences and `queue` requests beside.
    pub fn new(running: usize, queue: usize) -> Self {
        let inside = Arc::default();
        Self { sequences: Arc::new(Semaphore::new(running)), running, queue, inside }
    }

    /// Lets a request in.
    ///
    /// # Errors
    /// Status 429 where there is no room, 503 where the server ends.
    pub fn enter(&self) -> Result<Ticket, Problem> {
        if self.sequences.is_closed() {
            return Err(Problem::stopping());
        }
        let most = self.running + self.queue;
        let one_more = |inside: usize| (inside < most).then_some(inside + 1);
        match self.inside.fetch_update(SeqCst, SeqCst, one_more) {
            Ok(_) => Ok(Ticket(self.inside.clone())),
            Err(_) => Err(Problem::busy(self.queue)),
        }
    }

    /// Waits until one more sequence may run: first come, first served. It may until the permit is dropped. `None` where the server ends.
    pub async fn sequence(&self) -> Option<OwnedSemaphorePermit> {
        self.sequences.clone().acquire_owned().await.ok()
    }

    /// Nobody is let in any more, and nobody waits any more.
    pub fn close(&self) {
        self.sequences.close();
    }

    /// Requests that were let in and have not ended.
    pub fn inside(&self) -> usize {
        self.inside.load(SeqCst)
    }

    /// Sequences that run.
    pub fn running(&self) -> usize {
        self.running - self.sequences.available_permits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_come_in_and_each_that_leaves_makes_room() {
        let gate = Gate::new(2, 1);
        let mut tickets: Vec<_> = (0..3).map(|_| gate.enter().unwrap()).collect();
        assert_eq!(gate.enter().unwrap_err(), Problem::busy(1));
        tickets.pop();
        assert_eq!(gate.inside(), 2);
        let last = gate.enter().unwrap();
        assert!(gate.enter().is_err());
        drop((tickets, last));
        assert_eq!(gate.inside(), 0);
        gate.close();
        assert_eq!(gate.enter().unwrap_err(), Problem::stopping());
    }
}
