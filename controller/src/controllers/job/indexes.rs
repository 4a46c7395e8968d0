//! Sets of a Job's indexes as its status writes them: `1,3-5,7`.

use std::fmt;

/// A set of indexes, as ascending ranges that neither touch nor overlap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Indexes {
    ranges: Vec<(i32, i32)>,
}

impl Indexes {
    /// Reads a set; what cannot be read, or is not below `completions`, is left out.
    pub fn parse(text: &str, completions: i32) -> Self {
        let mut out = Indexes::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
                out.insert_range(first.max(0), last.min(completions - 1));
            }
        }
        out
    }

    /// Puts an index in.
    pub fn insert(&mut self, index: i32) {
        self.insert_range(index, index);
    }

    fn insert_range(&mut self, mut first: i32, mut last: i32) {
        if first > last {
            return;
        }
        // Whatever the new range touches becomes part of it.
        let from = self
            .ranges
            .partition_point(|range| range.1 < first.saturating_sub(1));
        let to = self
            .ranges
            .partition_point(|range| range.0 <= last.saturating_add(1));
        if let Some(&(start, _)) = self.ranges[from..to].first() {
            first = first.min(start);
        }
        if let Some(&(_, end)) = self.ranges[from..to].last() {
            last = last.max(end);
        }
        self.ranges.splice(from..to, [(first, last)]);
    }

    /// Whether an index is in.
    pub fn contains(&self, index: i32) -> bool {
        let at = self.ranges.partition_point(|range| range.1 < index);
        self.ranges.get(at).is_some_and(|range| range.0 <= index)
    }

    /// How many there are.
    pub fn len(&self) -> i32 {
        self.ranges.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many of these are in `other` as well.
    pub fn shared_with(&self, other: &Indexes) -> i32 {
        let mut shared = 0;
        for &(first, last) in &self.ranges {
            let from = other.ranges.partition_point(|range| range.1 < first);
            for &(start, end) in other.ranges[from..].iter().take_while(|range| range.0 <= last) {
                shared += end.min(last) - start.max(first) + 1;
            }
        }
        shared
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, &(first, last)) in self.ranges.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            match last - first {
                0 => write!(f, "{first}")?,
                // Two in a row are written as two.
                1 => write!(f, "{first},{last}")?,
                _ => write!(f, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn written_as_kubernetes_writes_them() {
        let mut set = Indexes::default();
        assert_eq!(set.to_string(), "");
        for index in [3, 5, 4, 7, 1, 9, 10] {
            set.insert(index);
        }
        assert_eq!(set.to_string(), "1,3-5,7,9,10");
        assert_eq!(Indexes::parse("1,3-5,7,x,9-", 6).to_string(), "1,3-5");
    }

    proptest! {
        #[test]
        fn it_is_a_set(inserted in prop::collection::vec(0i32..40, 0..60), others in prop::collection::vec(0i32..40, 0..20)) {
            let build = |items: &[i32]| {
                let mut set = Indexes::default();
                for &index in items {
                    set.insert(index);
                }
                set
            };
            let (set, other) = (build(&inserted), build(&others));
            let model: BTreeSet<i32> = inserted.into_iter().collect();
            let other_model: BTreeSet<i32> = others.into_iter().collect();
            prop_assert_eq!(set.len(), i32::try_from(model.len()).unwrap());
            prop_assert_eq!(set.is_empty(), model.is_empty());
            prop_assert!((0..40).all(|index| set.contains(index) == model.contains(&index)));
            prop_assert_eq!(&Indexes::parse(&set.to_string(), 40), &set);
            let shared = i32::try_from(model.intersection(&other_model).count()).unwrap();
            prop_assert_eq!(set.shared_with(&other), shared);
        }
    }
}
