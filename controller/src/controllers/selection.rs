//! Which of the controllers run, and whether the scheduler does; said as to kube-controller-manager.

use std::str::FromStr;

use super::CONTROLLERS;
use crate::leader;
pub(crate) use crate::leader::SCHEDULER;

/// One word of a selection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// `*`: all that are not named.
    All,
    /// `name`.
    With(&'static str),
    /// `-name`.
    Without(&'static str),
}

/// A word that names no controller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not in the list of known controllers: {}", names().collect::<Vec<_>>().join(", "))]
pub struct UnknownController {
    text: String,
}

/// All that can be selected.
pub fn names() -> impl Iterator<Item = &'static str> {
    CONTROLLERS
        .iter()
        .map(|(name, _)| *name)
        .chain(std::iter::once(SCHEDULER))
}

impl FromStr for Choice {
    type Err = UnknownController;

    fn from_str(text: &str) -> Result<Self, UnknownController> {
        if text == "*" {
            return Ok(Self::All);
        }
        let off = text.strip_prefix('-');
        let long = off.unwrap_or(text);
        let short = long.strip_suffix("-controller").unwrap_or(long);
        let name = names()
            .find(|name| *name == short)
            .ok_or_else(|| UnknownController {
                text: long.to_owned(),
            })?;
        Ok(if off.is_some() {
            Self::Without(name)
        } else {
            Self::With(name)
        })
    }
}

/// What runs. The default is everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection(Vec<Choice>);

impl Default for Selection {
    fn default() -> Self {
        Self(vec![Choice::All])
    }
}

impl From<Vec<Choice>> for Selection {
    fn from(choices: Vec<Choice>) -> Self {
        Self(choices)
    }
}

impl Selection {
    /// Whether `name` runs: as its first mention says, or else if there is a `*`.
    pub fn includes(&self, name: &str) -> bool {
        let mentioned = self.0.iter().find_map(|choice| match choice {
            Choice::With(own) if *own == name => Some(true),
            Choice::Without(own) if *own == name => Some(false),
            _ => None,
        });
        mentioned.unwrap_or_else(|| self.0.contains(&Choice::All))
    }

    /// The parts of the control plane that run, separated by commas.
    pub(crate) fn parts(&self) -> String {
        let controllers = CONTROLLERS.iter().any(|(name, _)| self.includes(name));
        let parts = [
            controllers.then_some(leader::CONTROLLERS),
            self.includes(SCHEDULER).then_some(SCHEDULER),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(",")
    }

    /// Whether nothing runs.
    pub fn is_empty(&self) -> bool {
        self.parts().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(text: &str) -> Selection {
        Selection(text.split(',').map(|word| word.parse().unwrap()).collect())
    }

    #[test]
    fn a_mention_goes_before_the_star_and_the_first_one_counts() {
        let all = Selection::default();
        assert!(names().all(|name| all.includes(name)));
        let most = selection("*,-job,-scheduler");
        assert!(most.includes("cronjob") && !most.includes("job") && !most.includes(SCHEDULER));
        assert!(!selection("-job,*").includes("job"));
        let few = selection("job,deployment-controller");
        assert!(few.includes("job") && few.includes("deployment") && !few.includes("cronjob"));
        assert!(selection("job,-job").includes("job"));
        assert!(selection("-job").is_empty() && !few.is_empty());
        assert_eq!(most.parts(), "controller-manager");
        assert_eq!(selection("scheduler").parts(), "scheduler");
        assert_eq!(all.parts(), "controller-manager,scheduler");
    }

    #[test]
    fn an_unknown_name_is_refused_with_those_that_are_known() {
        for bad in ["jobs", "-jobs", "", "-", "-*", "controller"] {
            let error = bad.parse::<Choice>().unwrap_err().to_string();
            assert!(error.contains("not in the list of known controllers") && error.contains("cronjob, "));
        }
    }

    #[test]
    fn names_are_told_apart() {
        let mut all: Vec<_> = names().collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
