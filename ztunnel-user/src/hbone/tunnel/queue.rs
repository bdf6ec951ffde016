//! Streams that wait for the same thing, in turn: whoever was served since the last round goes behind those who were
//! not, so that a stream that always wants more cannot keep the others from ever having any.

use std::collections::VecDeque;

use super::StreamId;

/// Who waits.
#[derive(Debug)]
pub(super) struct Queue {
    /// Those who had nothing in this round.
    first: VecDeque<StreamId>,
    /// Those who had something, and want more.
    again: VecDeque<StreamId>,
    round: u64,
}

/// What a stream knows of its place in a queue.
#[derive(Debug, Default)]
pub(super) struct Turn {
    waits: bool,
    /// The round in which it got something last; rounds begin with 1.
    round: u64,
    /// How much that was, bytes.
    got: usize,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self {
            first: VecDeque::new(),
            again: VecDeque::new(),
            round: 1,
        }
    }

    /// Takes a place, unless the stream has one already.
    pub(super) fn wait(&mut self, id: StreamId, turn: &mut Turn) {
        if std::mem::replace(&mut turn.waits, true) {
            return;
        }
        if self.got(turn) > 0 {
            self.again.push_back(id);
        } else {
            self.first.push_back(id);
        }
    }

    /// The stream takes `count` bytes of what there is.
    pub(super) fn serve(&self, turn: &mut Turn, count: usize) {
        turn.got = self.got(turn).saturating_add(count);
        turn.round = self.round;
    }

    /// What the stream has taken in this round, bytes.
    pub(super) fn got(&self, turn: &Turn) -> usize {
        if turn.round == self.round { turn.got } else { 0 }
    }

    /// There is more: everybody who waits, in turn. Each is to be told by [`Turn::comes`].
    pub(super) fn next_round(&mut self) -> impl Iterator<Item = StreamId> {
        self.round += 1;
        self.first.append(&mut self.again);
        self.first.drain(..)
    }

    /// The stream is gone.
    pub(super) fn leave(&mut self, id: StreamId, turn: &Turn) {
        if turn.waits {
            self.first.retain(|waiting| *waiting != id);
            self.again.retain(|waiting| *waiting != id);
        }
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.first.len() + self.again.len()
    }
}

impl Turn {
    /// It is the stream's turn: it waits no longer.
    pub(super) fn comes(&mut self) {
        self.waits = false;
    }
}
