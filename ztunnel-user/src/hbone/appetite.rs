//! How much is read from a socket at once. A read that fills its buffer earns the next larger one; what has not been
//! needed for a while is given up. It never reads by itself.

/// After so many reads in a row that the next smaller buffer could have taken, it is used again.
const SMALL_READS: u8 = 8;

/// How far one reader has come in a list of sizes, which are bytes in rising order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Appetite {
    at: usize,
    small_reads: u8,
}

impl Appetite {
    /// How much to read next; the largest of `sizes` for one that has come further in a longer list.
    pub fn of(&self, sizes: &[usize]) -> usize {
        let size = sizes.get(self.at).or(sizes.last());
        size.copied().unwrap_or_default()
    }

    /// `count` bytes came.
    pub fn got(&mut self, sizes: &[usize], count: usize) {
        let smaller = self.at.checked_sub(1).and_then(|at| sizes.get(at)).copied();
        if count >= self.of(sizes) {
            self.small_reads = 0;
            self.at = (self.at + 1).min(sizes.len().saturating_sub(1));
        } else if smaller.is_some_and(|smaller| count < smaller) {
            self.small_reads += 1;
            if self.small_reads >= SMALL_READS {
                self.small_reads = 0;
                self.at -= 1;
            }
        } else {
            self.small_reads = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [usize; 3] = [10, 20, 30];

    #[test]
    fn full_reads_earn_larger_ones_and_eight_small_ones_in_a_row_a_smaller_one() {
        let mut appetite = Appetite::default();
        let mut sizes = Vec::new();
        for count in [10, 20, 30, 30] {
            appetite.got(&SIZES, count);
            sizes.push(appetite.of(&SIZES));
        }
        assert_eq!(sizes, [20, 30, 30, 30]);
        for _ in 0..7 {
            appetite.got(&SIZES, 19);
        }
        appetite.got(&SIZES, 20);
        assert_eq!(appetite.of(&SIZES), 30, "one that was not small in between");
        for _ in 0..8 {
            appetite.got(&SIZES, 19);
        }
        assert_eq!(appetite.of(&SIZES), 20);
    }

    #[test]
    fn a_shorter_list_ends_with_its_largest() {
        let mut appetite = Appetite::default();
        for _ in 0..3 {
            appetite.got(&SIZES, 30);
        }
        assert_eq!(appetite.of(&[1, 2]), 2);
    }
}
