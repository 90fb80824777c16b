//! Which web pages may use the server: its own, and those that `--cors` names. A browser lets every page send requests to the machine that it runs on, where a
//! server without a key would obey them; and a page whose name its owner has pointed at that machine (DNS rebinding) reads the answers, too.

use std::net::IpAddr;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, Method, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::{problem::Problem, server::Shared};

/// Refuses what other pages send, by what a browser says of them: no page can make it say otherwise. Other programs say nothing of the kind.
pub async fn check(State(server): State<Shared>, request: Request, next: Next) -> Response {
    let (headers, cors) = (request.headers(), &server.options.cors);
    let reads = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let refused = match (foreign_name(headers), foreign_page(headers, cors)) {
        (Some(name), _) if server.is_local && !is_among(&server.options.allowed_host, name) => {
            Some(Problem::name(name))
        }
        // What it may not read does no harm.
        (_, Some(page)) if !reads => Some(Problem::page(page)),
        _ => None,
    };
    match refused {
        Some(problem) => problem.into_response(),
        None => next.run(request).await,
    }
}

fn is_among(names: &[String], name: &str) -> bool {
    names.iter().any(|known| known == "*" || known.eq_ignore_ascii_case(name))
}

/// The name by which the server was called, where it is neither an address nor this machine's own name for itself. No page has an address of ours as its
/// name without having come from there.
fn foreign_name(headers: &HeaderMap) -> Option<&str> {
    let host = headers.get(header::HOST)?.to_str().unwrap_or("?");
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let plain = name.trim_end_matches('.').trim_start_matches('[').trim_end_matches(']');
    let is_local =
        plain.eq_ignore_ascii_case("localhost") || plain.to_ascii_lowercase().ends_with(".localhost");
    (!host.is_empty() && !is_local && plain.parse::<IpAddr>().is_err()).then_some(name)
}

/// The origin of the page that sends this, where it is neither the server's own nor one of `cors`.
fn foreign_page<'h>(headers: &'h HeaderMap, cors: &[String]) -> Option<&'h str> {
    let origin = headers.get(header::ORIGIN)?.to_str().unwrap_or("?");
    // Behind a proxy the server's own page has another name than the server is called by. Older browsers do not say.
    let own = headers.get("sec-fetch-site").is_some_and(|site| site == "same-origin" || site == "none");
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).and_then(authority);
    let page = origin.split_once("://").and_then(|(_, place)| authority(place));
    let same = page.is_some() && page == host;
    (!own && !same && !is_among(cors, origin)).then_some(origin)
}

/// A host with its port; upper case means nothing.
fn authority(text: &str) -> Option<Authority> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|&(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn names_of_others_are_found() {
        for own in [
            "127.0.0.1:8080",
            "localhost",
            "LOCALHOST:1",
            "localhost.",
            "yuan.localhost:80",
            "[::1]:8080",
            "10.0.0.7",
            "",
        ] {
            assert_eq!(foreign_name(&headers(&[("host", own)])), None, "{own}");
        }
        for other in ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "notlocalhost", "["]
        {
            assert_eq!(foreign_name(&headers(&[("host", other)])), Some(other));
        }
        assert_eq!(foreign_name(&headers(&[("host", "evil.example:8080")])), Some("evil.example"));
        assert_eq!(foreign_name(&headers(&[])), None);
    }

    #[test]
    fn pages_of_others_are_found() {
        let cors = ["https://friend.example".to_owned()];
        let page = |pairs: &[(&'static str, &'static str)]| foreign_page(&headers(pairs), &cors).is_some();
        let host = ("host", "yuan.example:8080");
        assert!(!page(&[host]));
        assert!(!page(&[host, ("origin", "https://friend.example")]));
        assert!(!page(&[host, ("origin", "http://Yuan.example:8080")]));
        assert!(!page(&[host, ("origin", "https://proxy.example"), ("sec-fetch-site", "same-origin")]));
        for other in
            ["http://yuan.example", "http://evil.example", "null", "https://friend.example.evil.example"]
        {
            assert!(page(&[host, ("origin", other)]), "{other}");
            assert!(page(&[host, ("origin", other), ("sec-fetch-site", "cross-site")]), "{other}");
        }
        assert!(page(&[("origin", "http://evil.example")]));
    }
}
