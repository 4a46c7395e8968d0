//! A seeded order: the same seed gives the same run.

/// A generator of orders (xorshift64*).
#[derive(Debug, Clone)]
pub struct Shuffle(u64);

impl Shuffle {
    /// From a seed, of which 0 is as good as any.
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    /// Puts `items` into a random order.
    pub fn apply<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let value = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        usize::try_from(value).unwrap_or_default() % limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_permutations_that_differ() {
        let mut shuffle = Shuffle::new(7);
        let orders: Vec<Vec<u8>> = (0..20)
            .map(|_| {
                let mut items: Vec<u8> = (0..9).collect();
                shuffle.apply(&mut items);
                items
            })
            .collect();
        for order in &orders {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..9).collect::<Vec<u8>>());
        }
        assert!(orders.windows(2).any(|pair| pair[0] != pair[1]));
        let mut again: Vec<u8> = (0..9).collect();
        Shuffle::new(7).apply(&mut again);
        assert_eq!(again, orders[0]);
    }
}
