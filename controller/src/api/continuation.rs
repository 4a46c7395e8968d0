//! The token with which a list that was cut goes on: opaque to clients, and nothing that they could forge would show them
//! more than a list does.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::store::Revision;

/// Where a cut list goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The first page's revision; 0: go on with what is there.
    pub revision: Revision,
    /// Which of the lists that are kept it goes on with.
    pub snapshot: u64,
    /// The last key that was seen.
    pub last_key: String,
}

impl Token {
    /// The token's text.
    pub fn encode(&self) -> String {
        let text = json!({"v": 1, "rv": self.revision, "id": self.snapshot, "last": self.last_key});
        URL_SAFE_NO_PAD.encode(text.to_string())
    }

    /// Reads a token; `None` if it is none.
    pub fn decode(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        (value["v"] == 1).then_some(())?;
        Some(Self {
            revision: value["rv"].as_u64()?,
            snapshot: value["id"].as_u64()?,
            last_key: value["last"].as_str()?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn tokens_survive_the_trip(revision in any::<u64>(), snapshot in any::<u64>(), last_key in "\\PC{0,40}") {
            let token = Token { revision, snapshot, last_key };
            prop_assert_eq!(Token::decode(&token.encode()), Some(token));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[A-Za-z0-9_-]{0,60}|\\PC{0,20}") {
            if let Some(token) = Token::decode(&text) {
                prop_assert_eq!(Token::decode(&token.encode()), Some(token));
            }
        }
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for bad in ["", "x", "e30", "!!!!"] {
            assert_eq!(Token::decode(bad), None, "{bad}");
        }
    }
}
