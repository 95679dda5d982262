"""Many requests on real servers, with clients that leave, apps that fail, workers that restart."""
