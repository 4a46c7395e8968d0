//! Who a bearer token stands for.

use std::sync::Arc;

use jiff::Timestamp;

use super::service_account::keys::TokenKeys;
use super::service_account::{self, Holder, ISSUER, TokenError, Verifier};
use super::{Identity, bootstrap_token};
use crate::store::Store;

/// Judges bearer tokens.
pub(crate) struct Authenticator {
    store: Arc<dyn Store>,
    accounts: Verifier,
}

impl Authenticator {
    pub(crate) fn new(store: Arc<dyn Store>, keys: Arc<TokenKeys>) -> Self {
        Self {
            accounts: Verifier::new(Arc::clone(&store), keys),
            store,
        }
    }

    /// The identity that a token stands for.
    pub(crate) fn authenticate(&self, token: &str, now: Timestamp) -> Result<Identity, TokenError> {
        let holder = self.review(token, &[ISSUER.to_owned()], now)?;
        Ok(holder.identity)
    }

    /// Who holds a token, if it is for one of the audiences.
    pub(crate) fn review(
        &self,
        token: &str,
        audiences: &[String],
        now: Timestamp,
    ) -> Result<Holder, TokenError> {
        // A bootstrap token has one dot, a signed one two.
        if token.matches('.').count() == 2 {
            return self.accounts.verify(token, audiences, now);
        }
        let identity =
            bootstrap_token::authenticate(self.store.as_ref(), token, now).ok_or(TokenError::Unknown)?;
        service_account::for_api_server(identity, audiences)
    }
}
