//! What to do with one object of the graph: without any IO.

/// What is known of an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerState {
    /// It exists and stays, or goes without waiting for its dependents.
    Solid,
    /// It is being deleted and waits for its dependents.
    Waiting,
    /// It exists no more.
    Gone,
}

/// One object.
#[derive(Debug)]
pub struct Item<'a> {
    /// It is being deleted.
    pub deleting: bool,
    /// It has the finalizer of foreground deletion.
    pub foreground: bool,
    /// It has the finalizer of orphaning deletion.
    pub orphan: bool,
    /// Objects that it owns.
    pub dependents: usize,
    /// Those of them that hold up its deletion.
    pub blocking: usize,
    /// One of them waits for its own dependents.
    pub dependent_waits: bool,
    /// Its owners.
    pub owners: &'a [OwnerState],
}

/// How dependents of a deleted object are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// They follow.
    Background,
    /// They go first.
    Foreground,
    /// They stay.
    Orphan,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// Take its reference off its dependents, then its finalizer.
    Orphan,
    /// Take its finalizer off: its dependents are gone.
    FinishForeground,
    /// Look at its dependents: it waits for them.
    AskDependents,
    /// Take the references to owners off that are gone or going.
    DropOwners,
    /// Delete it.
    Delete {
        /// In this way.
        policy: Policy,
        /// After it has stopped holding up its owners.
        unblock: bool,
    },
}

/// Decides about one object.
pub fn decide(item: &Item<'_>) -> Action {
    if item.deleting {
        return if item.orphan {
            Action::Orphan
        } else if !item.foreground {
            Action::Nothing
        } else if item.blocking == 0 {
            Action::FinishForeground
        } else {
            Action::AskDependents
        };
    }
    let has = |state| item.owners.contains(&state);
    if item.owners.is_empty() || !(has(OwnerState::Gone) || has(OwnerState::Waiting)) {
        Action::Nothing
    } else if has(OwnerState::Solid) {
        Action::DropOwners
    } else if has(OwnerState::Waiting) && item.dependents > 0 {
        // Its owner waits for it, so it waits for its own dependents in turn.
        Action::Delete {
            policy: Policy::Foreground,
            unblock: item.dependent_waits,
        }
    } else {
        let policy = if item.orphan {
            Policy::Orphan
        } else if item.foreground {
            Policy::Foreground
        } else {
            Policy::Background
        };
        Action::Delete {
            policy,
            unblock: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::OwnerState::{Gone, Solid, Waiting};
    use super::*;

    fn item(owners: &[OwnerState]) -> Item<'_> {
        Item {
            deleting: false,
            foreground: false,
            orphan: false,
            dependents: 0,
            blocking: 0,
            dependent_waits: false,
            owners,
        }
    }

    #[test]
    fn by_owners() {
        let background = Action::Delete {
            policy: Policy::Background,
            unblock: false,
        };
        for (owners, action) in [
            (&[][..], Action::Nothing),
            (&[Solid], Action::Nothing),
            (&[Gone], background),
            (&[Gone, Gone], background),
            (&[Solid, Gone], Action::DropOwners),
            (&[Solid, Waiting], Action::DropOwners),
            (&[Waiting], background),
            (&[Waiting, Gone], background),
        ] {
            assert_eq!(decide(&item(owners)), action, "{owners:?}");
        }
    }

    #[test]
    fn owners_that_wait_make_their_dependents_wait() {
        let waiting = Item {
            dependents: 2,
            ..item(&[Waiting])
        };
        assert_eq!(
            decide(&waiting),
            Action::Delete {
                policy: Policy::Foreground,
                unblock: false
            }
        );
        let circle = Item {
            dependents: 2,
            dependent_waits: true,
            ..item(&[Waiting])
        };
        assert_eq!(
            decide(&circle),
            Action::Delete {
                policy: Policy::Foreground,
                unblock: true
            }
        );
        let gone = Item {
            dependents: 2,
            ..item(&[Gone])
        };
        assert_eq!(
            decide(&gone),
            Action::Delete {
                policy: Policy::Background,
                unblock: false
            }
        );
        let orphaning = Item {
            orphan: true,
            ..item(&[Gone])
        };
        assert_eq!(
            decide(&orphaning),
            Action::Delete {
                policy: Policy::Orphan,
                unblock: false
            }
        );
    }

    #[test]
    fn objects_on_their_way_out() {
        let deleting = Item {
            deleting: true,
            ..item(&[Gone])
        };
        assert_eq!(decide(&deleting), Action::Nothing);
        let foreground = Item {
            deleting: true,
            foreground: true,
            dependents: 3,
            blocking: 1,
            ..item(&[])
        };
        assert_eq!(decide(&foreground), Action::AskDependents);
        let last = Item {
            deleting: true,
            foreground: true,
            dependents: 2,
            ..item(&[])
        };
        assert_eq!(
            decide(&last),
            Action::FinishForeground,
            "those that do not block follow"
        );
        let orphan = Item {
            deleting: true,
            orphan: true,
            dependents: 3,
            ..item(&[])
        };
        assert_eq!(decide(&orphan), Action::Orphan);
    }
}
