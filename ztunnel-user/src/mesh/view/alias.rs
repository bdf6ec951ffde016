//! A weighted choice in two random numbers and one look at a table: Vose's alias method (M. Vose, "A Linear
//! Algorithm for Generating Random Numbers with a Given Distribution", 1991).
//!
//! Each of n items gets a slot of the same size and shares it with at most one other, the alias. A program without
//! loops and floating point can choose by it. All sums are whole numbers, so rounding happens once a slot.

/// One of the equal parts of a table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slot<T> {
    /// The item the slot was made for.
    pub item: T,
    /// The item's part of the slot, in units of 2^-32. [`u32::MAX`] means all of it.
    pub threshold: u32,
    /// The slot whose item has the rest; the slot itself if there is no rest.
    pub alias: u32,
}

/// Items that are chosen by weight.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AliasTable<T> {
    slots: Vec<Slot<T>>,
}

/// A slot that is not settled yet: its place, and how much of it its own item fills, out of the sum of all weights.
type Part = (u32, u64);

impl<T> AliasTable<T> {
    /// A table in which each item has its weight's share of all weights, to 2^-32 of the whole. Items of weight 0
    /// are left out; the others keep their order, and there may be up to 2^32 of them.
    pub fn new(items: impl IntoIterator<Item = T>, weight: impl Fn(&T) -> u32) -> Self {
        let mut slots = Vec::new();
        let mut weights = Vec::new();
        for item in items {
            let weight = weight(&item);
            if weight > 0 {
                let (threshold, alias) = (u32::MAX, slots.len() as u32);
                slots.push(Slot {
                    item,
                    threshold,
                    alias,
                });
                weights.push(u64::from(weight));
            }
        }
        let total: u64 = weights.iter().sum();
        let count = weights.len() as u64;
        let parts = (0..).zip(weights.iter().map(|weight| weight * count));
        let (mut small, mut large): (Vec<Part>, Vec<Part>) = parts.partition(|(_, part)| *part < total);
        // What a small item leaves of its slot, a large one takes, until it is small itself. Whatever remains on
        // either side fills its slot exactly, and is so already.
        while let (Some((lesser, part)), Some((greater, share))) = (small.pop(), large.pop()) {
            let slot = &mut slots[lesser as usize];
            slot.threshold = portion(part, total);
            slot.alias = greater;
            let rest = (greater, share - (total - part));
            if rest.1 < total {
                small.push(rest);
            } else {
                large.push(rest);
            }
        }
        Self { slots }
    }

    /// The item that two random numbers mean. `None` if the table is empty.
    ///
    /// This is the rule for every reader of the table. The slot is `(first * slots) >> 32`, whose own bias is below
    /// 2^-32 a slot; `second` below the threshold is the slot's own item, anything else the alias's. (A slot of its
    /// own has itself as its alias, so the threshold of all needs no case.)
    #[must_use]
    pub fn pick(&self, first: u32, second: u32) -> Option<&T> {
        let index = (u64::from(first) * self.slots.len() as u64) >> 32;
        let slot = self.slots.get(index as usize)?;
        if second < slot.threshold {
            Some(&slot.item)
        } else {
            self.slots.get(slot.alias as usize).map(|alias| &alias.item)
        }
    }

    /// All slots.
    #[must_use]
    pub fn slots(&self) -> &[Slot<T>] {
        &self.slots
    }

    /// All items, each once.
    pub fn items(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().map(|slot| &slot.item)
    }
}

/// `part / total` in units of 2^-32, rounded down; `part` is below `total`.
fn portion(part: u64, total: u64) -> u32 {
    ((u128::from(part) << 32) / u128::from(total)) as u32
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, RngExt, SeedableRng};

    use super::*;

    fn table(weights: &[u32]) -> AliasTable<(usize, u32)> {
        AliasTable::new(weights.iter().copied().enumerate(), |(_, weight)| *weight)
    }

    /// How probable the table makes each weight's item, by its slots alone.
    fn probabilities(table: &AliasTable<(usize, u32)>, count: usize) -> Vec<f64> {
        let mut probabilities = vec![0.0; count];
        let share = 1.0 / table.slots().len() as f64;
        for slot in table.slots() {
            let own = f64::from(slot.threshold) / 2_f64.powi(32);
            probabilities[slot.item.0] += share * own;
            probabilities[table.slots()[slot.alias as usize].item.0] += share * (1.0 - own);
        }
        probabilities
    }

    fn is_exact(weights: &[u32]) {
        let table = table(weights);
        let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
        for (index, probability) in probabilities(&table, weights.len()).into_iter().enumerate() {
            let due = f64::from(weights[index]) / total;
            assert!(
                (probability - due).abs() < 2_f64.powi(-30),
                "{index} of {weights:?}: {probability}, {due}"
            );
        }
    }

    #[test]
    fn every_item_has_its_share_of_all_weights() {
        is_exact(&[1]);
        is_exact(&[1, 1, 1]);
        is_exact(&[1, 2, 3, 0, 94]);
        is_exact(&[u32::MAX, 1, u32::MAX]);
        is_exact(&[u32::MAX; 4096]);
        let mut rng = StdRng::seed_from_u64(1);
        for _ in 0..300 {
            let count = rng.random_range(1..200);
            let most = 1_u32 << rng.random_range(0..32);
            let mut weights: Vec<u32> = (0..count).map(|_| rng.random_range(0..=most)).collect();
            weights[0] = most;
            is_exact(&weights);
        }
        let many: Vec<u32> = (0..4096).map(|_| rng.next_u32()).collect();
        is_exact(&many);
    }

    #[test]
    fn items_without_weight_are_left_out_and_the_others_keep_their_order() {
        let items: Vec<_> = table(&[0, 3, 0, 1, 2]).items().copied().collect();
        assert_eq!(items, [(1, 3), (3, 1), (4, 2)]);
        let empty = table(&[0, 0]);
        assert!(empty.slots().is_empty());
        assert_eq!(empty.pick(0, 0), None);
        assert_eq!(empty.pick(u32::MAX, u32::MAX), None);
    }

    #[test]
    fn equal_weights_share_nothing() {
        for (index, slot) in table(&[7, 7, 7]).slots().iter().enumerate() {
            assert_eq!((slot.threshold, slot.alias as usize), (u32::MAX, index));
        }
    }

    #[test]
    fn the_extremes_of_both_numbers_find_an_item() {
        let table = table(&[1, 3]);
        // Slot 0: item 0 fills half of it. Slot 1 is all item 1's.
        assert_eq!((table.slots()[0].threshold, table.slots()[0].alias), (1 << 31, 1));
        assert_eq!(table.pick(0, 0), Some(&(0, 1)));
        assert_eq!(table.pick(0, (1 << 31) - 1), Some(&(0, 1)));
        assert_eq!(table.pick(0, 1 << 31), Some(&(1, 3)));
        assert_eq!(table.pick(u32::MAX / 2, u32::MAX), Some(&(1, 3)));
        for second in [0, u32::MAX] {
            assert_eq!(table.pick(u32::MAX, second), Some(&(1, 3)));
        }
    }
}
