//! Things with small numbers as names: a number is given out again once what it named is gone.

use std::ops::{Index, IndexMut};

/// A table whose places are reused.
#[derive(Debug)]
pub(super) struct Slots<T> {
    items: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Slots {
            items: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slots<T> {
    pub(super) fn insert(&mut self, item: T) -> usize {
        if let Some(at) = self.free.pop() {
            self.items[at] = Some(item);
            at
        } else {
            self.items.push(Some(item));
            self.items.len() - 1
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        self.items
            .iter()
            .enumerate()
            .filter_map(|(at, item)| item.as_ref().map(|item| (at, item)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut T)> {
        self.items
            .iter_mut()
            .enumerate()
            .filter_map(|(at, item)| item.as_mut().map(|item| (at, item)))
    }

    /// Takes out what is not to be kept.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(usize, &T) -> bool) {
        for (at, place) in self.items.iter_mut().enumerate() {
            if place.as_ref().is_some_and(|item| !keep(at, item)) {
                *place = None;
                self.free.push(at);
            }
        }
    }
}

impl<T> Index<usize> for Slots<T> {
    type Output = T;

    fn index(&self, at: usize) -> &T {
        match &self.items[at] {
            Some(item) => item,
            None => unreachable!("place {at} is empty: it was taken out while in use"),
        }
    }
}

impl<T> IndexMut<usize> for Slots<T> {
    fn index_mut(&mut self, at: usize) -> &mut T {
        match &mut self.items[at] {
            Some(item) => item,
            None => unreachable!("place {at} is empty: it was taken out while in use"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_reused() {
        let mut slots = Slots::default();
        let (a, b) = (slots.insert("a"), slots.insert("b"));
        assert_eq!((slots[a], slots[b]), ("a", "b"));
        slots.retain(|_, item| *item != "a");
        assert_eq!(slots.iter().map(|(at, _)| at).collect::<Vec<_>>(), [b]);
        assert_eq!(slots.insert("c"), a);
        assert_eq!(slots[a], "c");
    }
}
