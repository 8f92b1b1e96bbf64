//! The page itself: one HTML document without anything to fetch.

use std::fmt::Write as _;

use super::details::Details;
use super::reviews::{Rating, Review, Reviews};

/// The book.
pub const TITLE: &str = "The Comedy of Errors";

const STYLE: &str = include_str!("page.css");

/// What the page shows.
pub struct Page {
    /// Who is signed in.
    pub user: Option<String>,
    /// What `details` said.
    pub details: anyhow::Result<Details>,
    /// What `reviews` said.
    pub reviews: anyhow::Result<Reviews>,
}

impl Page {
    /// The page as HTML. A part that failed says so in its place; the rest is shown.
    #[must_use]
    pub fn render(&self) -> String {
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>{TITLE} · Bookinfo</title>\
             <style>{STYLE}</style></head><body>\n{}<main>\n{}<div class=\"columns\">\n{}{}</div></main>\n</body></html>\n",
            self.header(),
            cover(),
            self.details(),
            self.reviews(),
        )
    }

    fn header(&self) -> String {
        let account = match &self.user {
            Some(user) => format!("<span>signed in as <b>{}</b></span> <a href=\"/logout\">sign out</a>", escape(user)),
            None => "<form method=\"post\" action=\"/login\"><input name=\"username\" placeholder=\"user name\" \
                     aria-label=\"user name\" required maxlength=\"32\"><button>Sign in</button></form>"
                .to_owned(),
        };
        format!(
            "<header><a class=\"brand\" href=\"/productpage\">Bookinfo</a><div class=\"account\">{account}</div></header>\n"
        )
    }

    fn details(&self) -> String {
        let body = match &self.details {
            Ok(details) => details_table(details),
            Err(_) => failure("details", "Error fetching product details!"),
        };
        format!("<section class=\"card\" id=\"details\"><h2>Book details</h2>{body}</section>\n")
    }

    fn reviews(&self) -> String {
        let body = match &self.reviews {
            Ok(reviews) => {
                let mut body: String = reviews.reviews.iter().map(review).collect();
                let _ = write!(
                    body,
                    "<p class=\"served\">Reviews served by <code>{}</code></p>",
                    escape(&reviews.podname)
                );
                body
            }
            Err(_) => failure("reviews", "Error fetching product reviews!"),
        };
        format!("<section class=\"card\" id=\"reviews\"><h2>Book reviews</h2>{body}</section>\n")
    }
}

fn cover() -> String {
    format!(
        "<section class=\"cover\"><p class=\"kicker\">A play in five acts</p><h1>{TITLE}</h1>\
         <p>Two pairs of twins, one town, one day. Everybody is taken for somebody else, nobody thinks of asking, \
         and by evening a goldsmith, a courtesan and a conjurer all want their money.</p></section>\n"
    )
}

fn details_table(details: &Details) -> String {
    let rows = [
        ("Author", details.author.clone()),
        ("Year", details.year.to_string()),
        ("Type", details.binding.clone()),
        ("Pages", details.pages.to_string()),
        ("Publisher", details.publisher.clone()),
        ("Language", details.language.clone()),
        ("ISBN-10", details.isbn_10.clone()),
        ("ISBN-13", details.isbn_13.clone()),
    ];
    let rows: String = rows
        .iter()
        .map(|(name, value)| format!("<dt>{name}</dt><dd>{}</dd>", escape(value)))
        .collect();
    format!("<dl>{rows}</dl>")
}

fn review(review: &Review) -> String {
    let rating = match &review.rating {
        None => String::new(),
        Some(Rating::Stars { stars, color }) => {
            let full = usize::from((*stars).min(5));
            format!(
                "<p class=\"stars {}\" aria-label=\"{full} of 5 stars\">{}<span class=\"empty\">{}</span></p>",
                escape(color),
                "★".repeat(full),
                "☆".repeat(5 - full)
            )
        }
        Some(Rating::Unavailable { error }) => {
            format!("<p class=\"unavailable\">{}</p>", escape(error))
        }
    };
    format!(
        "<blockquote><p>{}</p>{rating}<footer>{}</footer></blockquote>",
        escape(&review.text),
        escape(&review.reviewer)
    )
}

fn failure(service: &str, what: &str) -> String {
    format!(
        "<div class=\"failure\"><b>{what}</b><p>Sorry, product {service} are currently unavailable for this book.</p></div>"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_failed_says_so_and_the_rest_is_shown() {
        let reviews = Reviews {
            id: 0,
            podname: "reviews-v3<1>".into(),
            reviews: vec![],
        };
        let html = Page {
            user: None,
            details: Err(anyhow::anyhow!("down")),
            reviews: Ok(reviews),
        }
        .render();
        assert!(html.contains("Error fetching product details!"));
        assert!(html.contains("reviews-v3&lt;1&gt;"));
    }

    #[test]
    fn stars_have_the_colour_of_the_version() {
        let red = Review {
            reviewer: "a".into(),
            text: "b".into(),
            rating: Some(Rating::Stars {
                stars: 4,
                color: "red".into(),
            }),
        };
        let html = review(&red);
        assert!(
            html.contains("stars red") && html.contains("★★★★<span class=\"empty\">☆</span>"),
            "{html}"
        );
    }
}
