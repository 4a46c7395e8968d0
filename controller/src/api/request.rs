//! What a request asks for: the URL grammar and the query.

use std::collections::HashMap;
use std::time::Duration;

use http::Method;

use super::status::ApiError;

/// A path under `/api` or `/apis`, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourcePath {
    /// The group; empty for the core.
    pub group: String,
    /// The version.
    pub version: String,
    /// The namespace; empty for none.
    pub namespace: String,
    /// The resource's plural; empty for the group version itself.
    pub plural: String,
    /// The object's name; empty for the collection.
    pub name: String,
    /// The subresource; empty for the object.
    pub subresource: String,
    /// What follows the subresource.
    pub rest: String,
}

impl ResourcePath {
    /// Takes a path apart; `None` if it is not a resource's.
    pub fn parse(path: &str) -> Option<Self> {
        let parts: Vec<String> = path
            .trim_matches('/')
            .split('/')
            .map(percent_decode)
            .collect::<Option<_>>()?;
        let mut parts = parts.into_iter();
        let group = match parts.next()?.as_str() {
            "api" => String::new(),
            "apis" => parts.next().filter(|group| !group.is_empty())?,
            _ => return None,
        };
        let mut path = Self {
            group,
            version: parts.next()?,
            ..Self::default()
        };
        let mut parts = parts.peekable();
        let Some(first) = parts.next() else {
            return Some(path);
        };
        let mut take = || parts.next().unwrap_or_default();
        if first == "namespaces" && path.group.is_empty() {
            let (name, below) = (take(), take());
            // Only these are below a namespace as an object; all else lives in it.
            if below.is_empty() || matches!(below.as_str(), "status" | "finalize") {
                path.plural = first;
                path.name = name;
                path.subresource = below;
            } else {
                path.namespace = name;
                path.plural = below;
                path.name = take();
                path.subresource = take();
            }
        } else if first == "namespaces" {
            path.namespace = take();
            path.plural = take();
            path.name = take();
            path.subresource = take();
        } else {
            path.plural = first;
            path.name = take();
            path.subresource = take();
        }
        path.rest = parts.collect::<Vec<_>>().join("/");
        Some(path)
    }
}

/// The query, first value of each key; clients send empty segments.
#[derive(Clone, Debug, Default)]
pub struct Query(HashMap<String, String>);

impl Query {
    /// Reads a query string.
    ///
    /// # Errors
    /// 400 if an escape is broken.
    pub fn parse(query: &str) -> Result<Self, ApiError> {
        let mut map = HashMap::new();
        for segment in query.split(['&', '?']).filter(|segment| !segment.is_empty()) {
            let (key, value) = segment.split_once('=').unwrap_or((segment, ""));
            let decode = |text: &str| {
                percent_decode(text.replace('+', " "))
                    .ok_or_else(|| ApiError::bad_request(format!("invalid URL escape in query: {text:?}")))
            };
            map.entry(decode(key)?).or_insert(decode(value)?);
        }
        Ok(Self(map))
    }

    /// A parameter; empty counts as absent.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0
            .get(key)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// A flag.
    pub fn flag(&self, key: &str) -> bool {
        self.get(key)
            .is_some_and(|value| matches!(value, "true" | "1" | "True" | "TRUE" | "t"))
            || self.0.get(key).is_some_and(String::is_empty) && key == "watch"
    }

    /// A number.
    ///
    /// # Errors
    /// 400 if it is none.
    pub fn number(&self, key: &str) -> Result<Option<u64>, ApiError> {
        self.get(key)
            .map(|value| {
                value.parse().map_err(|_| {
                    ApiError::bad_request(format!(
                        "strconv.ParseUint: parsing {value:?}: invalid syntax ({key})"
                    ))
                })
            })
            .transpose()
    }

    /// How long a watch shall last.
    ///
    /// # Errors
    /// 400 if it is no number.
    pub fn timeout(&self) -> Result<Option<Duration>, ApiError> {
        Ok(self
            .number("timeoutSeconds")?
            .filter(|seconds| *seconds > 0)
            .map(|seconds| Duration::from_secs(seconds.min(24 * 3600))))
    }

    /// Whether nothing is to be stored. Anything but `All` was refused before.
    pub fn dry_run(&self) -> bool {
        self.get("dryRun").is_some()
    }
}

/// What is done, as authorisation names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Read one object.
    Get,
    /// Read a collection.
    List,
    /// Follow a collection.
    Watch,
    /// Add an object.
    Create,
    /// Replace an object.
    Update,
    /// Change an object.
    Patch,
    /// Remove an object.
    Delete,
    /// Remove many.
    DeleteCollection,
}

impl Verb {
    /// The verb of a request; `None` if the method means nothing here.
    pub fn of(method: &Method, path: &ResourcePath, query: &Query) -> Option<Self> {
        let one = !path.name.is_empty();
        match (method.as_str(), one) {
            ("GET" | "HEAD", true) if !query.flag("watch") || !path.subresource.is_empty() => Some(Self::Get),
            ("GET", _) if query.flag("watch") => Some(Self::Watch),
            ("GET" | "HEAD", false) => Some(Self::List),
            ("POST", _) => Some(Self::Create),
            ("PUT", true) => Some(Self::Update),
            ("PATCH", true) => Some(Self::Patch),
            ("DELETE", true) => Some(Self::Delete),
            ("DELETE", false) => Some(Self::DeleteCollection),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }

    /// Whether it changes nothing.
    pub fn reads(self) -> bool {
        matches!(self, Self::Get | Self::List | Self::Watch)
    }
}

pub(crate) fn percent_decode(text: impl AsRef<str>) -> Option<String> {
    let text = text.as_ref();
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'%' {
            let (digits, tail) = tail.split_at_checked(2)?;
            let digits = std::str::from_utf8(digits).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = tail;
        } else {
            bytes.push(byte);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> [String; 6] {
        let p = ResourcePath::parse(text).unwrap();
        [p.group, p.version, p.namespace, p.plural, p.name, p.subresource]
    }

    #[test]
    fn paths_are_taken_apart() {
        assert_eq!(path("/api/v1/pods"), ["", "v1", "", "pods", "", ""]);
        assert_eq!(path("/api/v1/namespaces"), ["", "v1", "", "namespaces", "", ""]);
        assert_eq!(
            path("/api/v1/namespaces/a"),
            ["", "v1", "", "namespaces", "a", ""]
        );
        assert_eq!(
            path("/api/v1/namespaces/a/finalize"),
            ["", "v1", "", "namespaces", "a", "finalize"]
        );
        assert_eq!(
            path("/api/v1/namespaces/a/pods/b/log"),
            ["", "v1", "a", "pods", "b", "log"]
        );
        assert_eq!(
            path("/apis/apps/v1/namespaces/a/deployments/b/scale"),
            ["apps", "v1", "a", "deployments", "b", "scale"]
        );
        assert_eq!(path("/apis/apps/v1"), ["apps", "v1", "", "", "", ""]);
        assert_eq!(path("/api/v1/nodes/n%31"), ["", "v1", "", "nodes", "n1", ""]);
        assert_eq!(ResourcePath::parse("/version"), None);
        assert_eq!(ResourcePath::parse("/api/v1/nodes/%zz"), None);
    }

    #[test]
    fn queries_may_have_empty_segments() {
        let query = Query::parse("?&limit=500&labelSelector=a%3Db,c+in+(d)&watch=1").unwrap();
        assert_eq!(query.number("limit").unwrap(), Some(500));
        assert_eq!(query.get("labelSelector"), Some("a=b,c in (d)"));
        assert!(query.flag("watch"));
        assert!(Query::parse("limit=x").unwrap().number("limit").is_err());
        assert!(Query::parse("dryRun=All").unwrap().dry_run());
    }
}
