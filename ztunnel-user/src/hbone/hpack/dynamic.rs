//! The dynamic table (RFC 7541 2.3.2 and 4): the fields that the peer had us remember, the newest first. It never
//! holds more octets than its limit allows, and never allocates more than two and a half times the largest limit
//! (and a hundred octets).

use std::collections::VecDeque;

use super::OVERHEAD;

/// Where a field stands in the storage. Its value follows its name.
struct Entry {
    start: usize,
    name: usize,
    value: usize,
}

impl Entry {
    const fn octets(&self) -> usize {
        self.name + self.value
    }
}

/// The table of one direction of one connection.
pub(super) struct DynamicTable {
    /// Names and values, the oldest first. What lies before the oldest entry is evicted, and stays until its
    /// place is needed: so an entry costs a copy of its octets, and no allocation once the storage has grown.
    storage: Vec<u8>,
    /// The oldest first.
    entries: VecDeque<Entry>,
    /// Sum over the entries of name, value and [`OVERHEAD`].
    size: usize,
    /// What `size` may not exceed.
    limit: usize,
}

impl DynamicTable {
    /// An empty table of at most `limit` octets. It allocates with its first entry.
    pub(super) const fn new(limit: usize) -> Self {
        Self {
            storage: Vec::new(),
            entries: VecDeque::new(),
            size: 0,
            limit,
        }
    }

    /// The field with this position, 0 for the newest.
    pub(super) fn get(&self, position: usize) -> Option<(&[u8], &[u8])> {
        let newest = self.entries.len().checked_sub(1)?;
        let entry = self.entries.get(newest.checked_sub(position)?)?;
        let field = self.storage.get(entry.start..)?.get(..entry.octets())?;
        field.split_at_checked(entry.name)
    }

    /// Octets of all fields as RFC 7541 4.1 counts them, and octets allocated.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize) {
        (
            self.size,
            self.storage.capacity() + self.entries.capacity() * size_of::<Entry>(),
        )
    }

    /// Another limit, for now and later; what does not fit goes, the oldest first.
    pub(super) fn resize(&mut self, limit: usize) {
        self.limit = limit;
        self.evict_to(limit);
        if limit == 0 {
            // A peer that wants no table will not fill it again.
            self.storage = Vec::new();
            self.entries = VecDeque::new();
        }
    }

    /// Adds a field in front, after the oldest have made room. A field that is larger than the table leaves it
    /// empty, which is no error (RFC 7541 4.4).
    pub(super) fn insert(&mut self, name: &[u8], value: &[u8]) {
        let octets = name.len() + value.len();
        let Some(room) = self.limit.checked_sub(octets + OVERHEAD) else {
            return self.evict_to(0);
        };
        self.evict_to(room);
        self.make_room(octets);
        let start = self.storage.len();
        self.storage.extend_from_slice(name);
        self.storage.extend_from_slice(value);
        self.entries.push_back(Entry {
            start,
            name: name.len(),
            value: value.len(),
        });
        self.size += octets + OVERHEAD;
    }

    fn evict_to(&mut self, room: usize) {
        while self.size > room {
            let Some(oldest) = self.entries.pop_front() else {
                break;
            };
            self.size -= oldest.octets() + OVERHEAD;
        }
        if self.entries.is_empty() {
            self.storage.clear();
        }
    }

    /// Sees to it that the storage can take as many octets more without exceeding the limit.
    fn make_room(&mut self, octets: usize) {
        if self.storage.len() + octets > self.limit {
            let evicted = self
                .entries
                .front()
                .map_or(self.storage.len(), |oldest| oldest.start);
            self.storage.drain(..evicted);
            for entry in &mut self.entries {
                entry.start -= evicted;
            }
        }
        let needed = self.storage.len() + octets;
        if needed > self.storage.capacity() {
            // Doubled, as a Vec does it, but not past the limit.
            let grown = (2 * self.storage.capacity()).min(self.limit).max(needed);
            self.storage.reserve_exact(grown - self.storage.len());
        }
    }
}
